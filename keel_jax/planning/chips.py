"""Peak speed of accelerators, by JAX's name of the device, one entry per device that JAX sees."""

import jax

# device_kind -> bf16 FLOP/s with float32 accumulation, dense.
# TPU: Google Cloud's TPU system-architecture pages (v4 275, v5e 197, v5p 459, v6e 918 TFLOP/s a
# chip; v2 46, v3 123). A v2 or v3 chip shows as two devices, and a tpu7x (2307) as two as well.
# NVIDIA: data sheets of the SXM parts (H100/H200 989, A100 312, B200 2250), without sparsity.
_PEAK_FLOPS_PER_SECOND = {
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops_per_second(device: jax.Device) -> float | None:
    """The device's bf16 peak; None if the table does not know it: no guess, and no MFU."""
    return _PEAK_FLOPS_PER_SECOND.get(device.device_kind)
