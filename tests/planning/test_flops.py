"""Executed FLOPs against counts by hand, and against the model's own formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import flops, hlo, hlo_text, resolve
from keel_jax.training import step as step_lib
from tests import conftest


def _program(function, *args) -> hlo.Program:
    return hlo.read_program(jax.jit(function).lower(*args).compile())


def _loop(x, w, length, body=lambda x, w: x @ w):
    return jax.lax.scan(lambda x, _: (body(x, w), None), x, length=length)[0]


_X, _W = jnp.ones((4, 8)), jnp.ones((8, 8))
_DOT = 2 * 4 * 8 * 8


@pytest.mark.parametrize(
    ("function", "dots"),
    [
        (lambda x, w: x @ w, 1),
        (lambda x, w: _loop(x, w, 5), 5),
        (lambda x, w: _loop(x, w, 5, lambda x, w: _loop(jnp.sin(x), w, 3)), 15),
        # Forward, and the products with x and with w for the two gradients.
        (jax.grad(lambda x, w: jnp.sin(_loop(x, w, 5)).sum(), argnums=(0, 1)), 15),
        # The same, and the forward pass again.
        (
            jax.grad(
                lambda x, w: jnp.sin(
                    _loop(x, w, 5, jax.checkpoint(lambda x, w: jnp.sin(jnp.sin(x @ w) @ w)))
                ).sum(),
                argnums=(0, 1),
            ),
            5 * (2 + 2 + 4),
        ),
    ],
    ids=["plain", "loop", "nested", "gradient", "remat"],
)
def test_executed_flops_by_hand(function, dots):
    program = _program(function, _X, _W)
    assert not program.unknown_loops
    assert flops.executed_flops(program).total == dots * _DOT


def test_a_loop_of_unknown_length_counts_once():
    def function(x, n):
        return jax.lax.while_loop(lambda c: c[1] < n, lambda c: (c[0] @ c[0], c[1] + 1), (x, 0))[0]

    program = _program(function, _W, jnp.int32(7))
    assert len(program.unknown_loops) == 1
    assert flops.executed_flops(program).total == 2 * 8**3


@pytest.mark.parametrize("plan", ["none", "block"])
def test_flops_of_the_real_step(plan):
    """Exactly the formula's, attention in full, and where every block is recomputed a third more,
    but for its last product, which nothing asks for again."""
    cfg = conftest.tiny_config(model=dict(recompute=dict(plan=plan)), train=dict(loss_chunk=0))
    mesh = mesh_lib.make(cfg.mesh)
    program = hlo.read_program(step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh))
    tokens = cfg.train.tokens_per_step
    model = tokens * cfg.model.flops_per_token(cfg.train.seq_len, causal=False) / mesh.size
    logits = 6 * tokens * cfg.model.d_model * cfg.model.vocab_size / mesh.size
    down = 2 * tokens * cfg.model.num_blocks * cfg.model.d_model * cfg.model.d_ffn / mesh.size
    again = (model - logits) / 3 - down if plan == "block" else 0
    np.testing.assert_allclose(flops.executed_flops(program).total, model + again, rtol=1e-12)


def test_convolutions_count_what_meets():
    """A batched product as a TPU writes it: each of 8 heads meets its own 64 columns only."""
    lhs = hlo_text.Instruction(
        "l", "parameter", hlo_text.parse_shapes("bf16[4,2048,1024,1]"), (), ""
    )
    rhs = hlo_text.Instruction("r", "parameter", hlo_text.parse_shapes("bf16[8,64,1024,1]"), (), "")
    one = hlo_text.parse_instruction(
        "c",
        "bf16[4,2048,8,64] convolution(%l, %r), window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, "
        "dim_labels=0bf1_1oi0->0b1f",
    )
    computation = hlo_text.Computation("m", {"l": lhs, "r": rhs, "c": one}, "c")
    assert flops._convolution(computation, one) == 2 * 4 * 2048 * 1024 * 8 * 64
