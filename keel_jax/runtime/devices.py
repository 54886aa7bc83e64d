"""The type of a device, for annotations: jaxlib ships `jax.Device` without one."""

from typing import Any, Protocol


class Device(Protocol):
    """The attributes of a `jax.Device` that the project reads; absent devices have them too."""

    @property
    def id(self) -> int: ...

    @property
    def platform(self) -> str:
        """As in "tpu", "gpu" or "cpu"."""
        ...

    @property
    def device_kind(self) -> str:
        """As in "TPU v5 lite"."""
        ...

    def memory_stats(self) -> dict[str, Any] | None:
        """Bytes by what they are; None where the platform does not say."""
        ...
