"""Options of XLA's compilers that differ from their defaults, and why."""

import jax

from keel_jax.runtime import devices

# By default libtpu turns matrix multiplications with a gathered operand into rings of one small
# multiplication and one send per device. These are 64 wide here and leave the matrix unit mostly
# idle: a block's weights are small, and gathering the next ones overlaps the multiplication anyway.
# Measured with the compiler's own estimate, 64 blocks on v5e:4x4, a sketch of this model: 1393 ->
# 826 million cycles per step.
# The value is the size in MiB above which the compiler does this: effectively never.
_TPU: dict[str, str | bool] = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "100000"}
# By default a GPU's compiler gathers a block's weights at the block's beginning, where nothing can
# run beside it: no multiplication stands between the gathers' starts and ends. Pipelined, a loop
# over blocks gathers the next block's weights while it computes this one: 135 GFLOP stand beside
# each gather of the forward loop, 90 beside those of the backward loop (the peers' shape on h100:8,
# jax 0.10.2), in the same memory. Asynchronous collectives, scheduling that hides their latency and
# pipelined reduce-scatters are that compiler's defaults: options for them would change nothing.
# Source of the option: docs.jax.dev, "GPU performance tips". It got another name in 0.11.1.
_GPU: dict[str, str | bool] = (
    {"xla_gpu_enable_pipelined_all_gather": True}
    if jax.__version_info__ < (0, 11, 1)
    else {"xla_gpu_pipeline_all_gather": "COLLECTIVE_PIPELINING_MODE_ON"}
)
# Where no GPU is, nothing can be timed to choose between kernels for a matrix multiplication: the
# compiler's cost model chooses. Without this it looks for a GPU to time them on.
_WITHOUT_A_GPU: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}


def options(device: devices.Device) -> dict[str, str | bool]:
    """Compiler options for programs on devices like this one, which may be absent."""
    options = {**{"tpu": _TPU, "gpu": _GPU}.get(device.platform, {})}
    if device.platform == "gpu" and device not in jax.devices():
        options |= _WITHOUT_A_GPU
    return options
