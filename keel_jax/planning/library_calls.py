"""FLOPs of what a GPU's program leaves to NVIDIA's libraries: cuBLAS, and cuDNN's attention.

    %g = (bf16[8192,1024], …) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul"
    %a = (bf16[4,8,2048,128], …) custom-call(%q, %k, %v, …), custom_call_target="__cudnn$fmha…"

What they compute is said by the shapes and by `backend_config` (xla/service/gpu/
backend_configs.proto: GemmBackendConfig, CudnnfMHABackendConfig).
"""

import math
import re

from keel_jax.planning import hlo_text

_PRODUCT = "__cublas$"
_ATTENTION = re.compile(r"__cudnn\$fmha\w*")
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')
_SCORES = re.compile(r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]')
_CAUSAL = re.compile(r'"mask_type":\s*"\w*CAUSAL')
# Products with the scores: s, o; backward s, dp, dv, dq, dk.
_FORWARD_PRODUCTS, _BACKWARD_PRODUCTS = 2, 5


def product(computation: hlo_text.Computation, instruction: hlo_text.Instruction) -> float | None:
    """FLOPs of a matrix multiplication by cuBLAS; None: it is another call."""
    if not _target(instruction).startswith(_PRODUCT):
        return None
    match = _CONTRACTED.search(instruction.attributes)
    assert match, f"{instruction.name}: a product that does not say over which dimensions"
    lhs = computation.instructions[instruction.operands[0]].shapes[0]
    contracted = math.prod(lhs.dims[dim] for dim in _integers(match[1]))
    return 2.0 * math.prod(instruction.shapes[0].dims) * contracted


def attention(computation: hlo_text.Computation, instruction: hlo_text.Instruction) -> float | None:
    """FLOPs of attention by cuDNN, 2 B N T S H a product; None: it is another call.

    Of causal attention half is counted, as blocks that are wholly in the future are skipped.
    """
    target = _target(instruction)
    match = _SCORES.search(instruction.attributes)
    if not _ATTENTION.fullmatch(target) or not match:
        return None
    width = computation.instructions[instruction.operands[0]].shapes[0].dims[-1]
    products = _BACKWARD_PRODUCTS if target.endswith("Backward") else _FORWARD_PRODUCTS
    part = 0.5 if _CAUSAL.search(instruction.attributes) else 1.0
    return products * 2.0 * math.prod(_integers(match[1])) * width * part


def _target(instruction: hlo_text.Instruction) -> str:
    return (instruction.attribute("custom_call_target") or "").strip('"')


def _integers(text: str) -> list[int]:
    """The numbers of a JSON list of strings, as in '"4", "8"'."""
    return [int(number) for number in re.findall(r"\d+", text)]
