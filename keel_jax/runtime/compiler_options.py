"""Options of XLA's compilers that differ from their defaults, and why."""

from keel_jax.runtime import devices

# By default libtpu turns matrix multiplications with a gathered operand into rings of one small
# multiplication and one send per device. These are 64 wide here and leave the matrix unit mostly
# idle: a block's weights are small, and gathering the next ones overlaps the multiplication anyway.
# Measured with the compiler's own estimate, 64 blocks on v5e:4x4, a sketch of this model: 1393 ->
# 826 million cycles per step.
# The value is the size in MiB above which the compiler does this: effectively never.
_TPU = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}


def options(device: devices.Device) -> dict[str, str | bool]:
    """Compiler options for programs on devices like this one."""
    return {**_TPU} if device.platform == "tpu" else {}
