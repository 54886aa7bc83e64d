"""What we ask of XLA's compilers beyond their defaults, and why."""

from keel_jax.runtime import devices

# libtpu's default turns matrix multiplications whose operand is gathered into rings of one small
# multiplication and one send a device. 64 wide here, they keep the matrix unit idle: a block's
# weights are small, and the gather of the next ones runs beside the multiplication anyway.
# Measured with the compiler's own estimate, 64 blocks on v5e:4x4, a sketch of this model: 1393 ->
# 826 million cycles a step.
# The value is the size, in MiB, from which on the compiler does it: never.
_TPU = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}


def options(device: devices.Device) -> dict[str, str | bool]:
    """Compiler options for programs on devices like this one."""
    return {**_TPU} if device.platform == "tpu" else {}
