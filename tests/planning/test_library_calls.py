"""FLOPs of the calls that a GPU's program makes, in its text as XLA writes it (jax 0.10.2)."""

import pytest

from keel_jax.planning import flops, hlo

_GEMM = (
    'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":'
    '{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
    '"rhs_contracting_dimensions":["2"],"lhs_batch_dimensions":["0"],'
    '"rhs_batch_dimensions":["0"]},"epilogue":"DEFAULT"}}'
)
_FMHA = (
    'custom_call_target="__cudnn$fmhaTARGET", backend_config={"cudnn_fmha_backend_config":'
    '{"fmha_scale": 0.125, "intermediate_tensor_shape": {"element_type": "BF16", "dimensions": '
    '["4", "8", "256", "512"], "tuple_shapes": []}, "mask_type": "MASK"}}'
)
_TEXT = """HloModule m

ENTRY %main (x: bf16[3,40,24], q: bf16[4,256,8,64], k: bf16[4,512,8,64]) -> bf16[3,40,40] {
  %x = bf16[3,40,24]{2,1,0} parameter(0)
  %q = bf16[4,256,8,64]{3,2,1,0} parameter(1)
  %k = bf16[4,512,8,64]{3,2,1,0} parameter(2)
  CALL
  ROOT %r = bf16[3,40,40]{2,1,0} broadcast(%x), dimensions={}
}
"""


def _flops(call: str) -> flops.ExecutedFlops:
    return flops.executed_flops(hlo.parse(_TEXT.replace("CALL", call)))


def test_a_product_of_cublas():
    call = f"%g = (bf16[3,40,40]{{2,1,0}}, s8[33554432]{{0}}) custom-call(%x, %x), {_GEMM}"
    assert _flops(call) == flops.ExecutedFlops(2 * 3 * 40 * 40 * 24, 0, ())


@pytest.mark.parametrize(
    ("target", "mask", "products"),
    [
        ("Softmax", "NO_MASK", 2),
        ("ScaleBiasSoftmax", "CAUSAL", 2 / 2),
        ("ScaleBiasSoftmaxBackward", "CAUSAL", 5 / 2),
        ("SoftmaxBackward", "PADDING_CAUSAL", 5 / 2),
    ],
)
def test_attention_of_cudnn(target, mask, products):
    config = _FMHA.replace("TARGET", target).replace("MASK", mask)
    call = f"%a = (bf16[4,8,256,64]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %k, %k), {config}"
    expected = products * 2 * 4 * 8 * 256 * 512 * 64
    assert _flops(call) == flops.ExecutedFlops(0, expected, ())


def test_a_call_that_does_not_say_is_named():
    call = '%a = bf16[3,40,40]{2,1,0} custom-call(%x), custom_call_target="__cudnn$fmhaOther"'
    assert _flops(call).uncounted == ("__cudnn$fmhaOther",)
