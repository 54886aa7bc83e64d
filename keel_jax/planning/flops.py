"""FLOPs that a compiled program executes, counted in its optimized HLO.

Matrix multiplications and convolutions only, as model FLOPs do; a multiplication and an addition
are two. What stands in a loop counts as often as it runs, recomputation included.
"""

import dataclasses
import math
import re

import numpy as np

from keel_jax.planning import hlo, hlo_text, library_calls

_COST_ESTIMATE = re.compile(r'"?flops"?:\s*"?(\d+)')
# JAX's splash attention, whose kernels do not say what they cost, and the products that each kernel
# computes for a block of scores: s, o; s, dp, dq; s, dv, dp, dk.
_SPLASH = re.compile(r"splash_\w*?(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
# Other custom calls may multiply no matrices: markers, sorting, memory moves.
_MATMUL_CALL = re.compile(
    r"matmul|gemm|dot|conv|attention|fmha|tpu_custom_call|mosaic|triton", re.I
)


@dataclasses.dataclass(frozen=True)
class ExecutedFlops:
    """FLOPs of one run of the program on one device."""

    # Dots, convolutions, and cuBLAS's products.
    matmul: float
    # Custom calls that say what they cost (Pallas' cost estimate), and splash and cuDNN attention.
    custom_calls: float
    # Targets of custom calls that may multiply matrices and do not say: counted as 0.
    uncounted: tuple[str, ...]

    @property
    def total(self) -> float:
        return self.matmul + self.custom_calls


def executed_flops(program: hlo.Program) -> ExecutedFlops:
    """The FLOPs of all instructions that run."""
    matmul, custom, uncounted = 0.0, 0.0, set()
    for computation, instruction, times in program.executed():
        if instruction.opcode == "dot":
            matmul += times * _dot(computation, instruction)
        elif instruction.opcode == "convolution":
            matmul += times * _convolution(computation, instruction)
        elif instruction.opcode == "custom-call":
            target = (instruction.attribute("custom_call_target") or "").strip('"')
            estimate = _COST_ESTIMATE.search(instruction.attributes)
            if product := library_calls.product(computation, instruction):
                matmul += times * product
            elif attention := library_calls.attention(computation, instruction):
                custom += times * attention
            elif estimate:
                custom += times * int(estimate[1])
            elif splash := _SPLASH.search(instruction.name):
                custom += times * _splash(computation, instruction, splash[1])
            elif _MATMUL_CALL.search(target):
                uncounted.add(target)
    return ExecutedFlops(matmul, custom, tuple(sorted(uncounted)))


def _splash(
    computation: hlo_text.Computation, instruction: hlo_text.Instruction, kernel: str
) -> float:
    """2 B N T^2 H a product, of the blocks that are not wholly in the future: (n + 1) / 2n of them.

    Its first operand is a table over the n x n blocks of queries and keys; the first one of
    floating-point numbers holds the queries [B, N, T, H], without B where that is 1.
    """
    shapes = computation.operand_shapes(instruction)
    num_blocks = shapes[0].dims[-1]
    *heads, tokens, width = next(s.dims for s in shapes if s.dtype in ("bf16", "f32"))
    causal = (num_blocks + 1) / (2 * num_blocks)
    return _SPLASH_PRODUCTS[kernel] * 2.0 * math.prod(heads) * tokens**2 * width * causal


def _dot(computation: hlo_text.Computation, instruction: hlo_text.Instruction) -> float:
    """2 (elements of the result) (product of the contracted sizes)."""
    lhs = computation.instructions[instruction.operands[0]].shapes[0]
    dims = instruction.required_attribute("lhs_contracting_dims").strip("{}")
    contracted = np.prod([lhs.dims[int(n)] for n in dims.split(",") if n])
    return float(2 * np.prod(instruction.shapes[0].dims, dtype=float) * contracted)


def _convolution(computation: hlo_text.Computation, instruction: hlo_text.Instruction) -> float:
    """2 (batch) (output features) (input features a group) (pairs that meet, per window axis).

    A TPU writes matrix multiplications as convolutions, batched ones with a window over the batch
    in which padding and dilation let each element meet its own partner only: pairs are counted,
    not the window's area.
    """
    lhs, rhs = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.required_attribute("dim_labels"))
    assert labels, f"{instruction.name}: dim_labels of an unknown form"
    lhs_labels, rhs_labels, out_labels = labels[1], labels[2], labels[3]
    window = _window(instruction.attribute("window"))
    pairs = 1
    for axis in sorted(label for label in out_labels if label.isdecimal()):
        pairs *= _meeting_pairs(
            lhs.dims[lhs_labels.index(axis)],
            rhs.dims[rhs_labels.index(axis)],
            out.dims[out_labels.index(axis)],
            {key: values[int(axis)] for key, values in window.items()},
        )
    groups = int(instruction.attribute("batch_group_count") or 1)
    batch = lhs.dims[lhs_labels.index("b")] // groups
    features = rhs.dims[rhs_labels.index("i")] * out.dims[out_labels.index("f")]
    return 2.0 * batch * features * pairs


def _meeting_pairs(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """(output position, kernel position) pairs that read an input element, along one axis."""
    stride, dilation = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    step = int(window.get("rhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    position = np.arange(out)[:, None] * stride - low + np.arange(kernel) * step
    is_inside = (position >= 0) & (position < (size - 1) * dilation + 1)
    return int((is_inside & (position % dilation == 0)).sum())


def _window(text: str | None) -> dict[str, list[str]]:
    """The window {size=3x3 pad=1_1x0_0} as {"size": ["3", "3"], "pad": ["1_1", "0_0"]}."""
    fields = (field.partition("=") for field in (text or "").strip("{}").split())
    return {key: values.split("x") for key, _, values in fields}
