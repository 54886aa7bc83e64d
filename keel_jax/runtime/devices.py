"""The type of a device, for annotations: jaxlib has no type information for `jax.Device`."""

from typing import Any, Protocol


class Device(Protocol):
    """The attributes of a `jax.Device` that are used here; devices of a topology have them too."""

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
        """Memory statistics in bytes, by name; None if the platform does not provide them."""
        ...
