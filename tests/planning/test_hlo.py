"""How often the parts of a compiled program run, read in its text."""

import jax
import jax.numpy as jnp
import pytest

from keel_jax.planning import hlo
from keel_jax.runtime import named_scopes

_LOOP = """HloModule m

%body (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x.1 = f32[8]{0:T(128)} get-tuple-element(%p.1), index=1
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i.1, %step)
  ROOT %t.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%next, %x.1)
}

%cond (p.2: (s32[], f32[8])) -> pred[] {
  %p.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %bound = s32[]{:T(128)} constant(17)
  ROOT %lt = pred[]{:T(512)} compare(%i.2, %bound), direction=DIRECTION
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(2)
  %begin = s32[]{:T(128)} copy(%zero)
  %t.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%begin, %x)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%t.2), condition=%cond, body=%body
  ROOT %result = f32[8]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    ("direction", "step", "trips"),
    [("LT", 1, 15), ("LE", 1, 16), ("LT", 4, 4), ("LE", 5, 4), ("GT", 1, None), ("LT", 0, None)],
)
def test_trip_counts_from_the_loops_counter(direction, step, trips):
    """As a TPU's text needs it, which has no note of XLA's: from start, step and bound."""
    text = _LOOP.replace("DIRECTION", direction).replace("STEP", str(step))
    assert hlo.parse(text).trip_counts == {"loop": trips}


def test_what_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("hello")


def test_a_rare_branch_counts_as_never_taken():
    """By its named scope; without it a branch counts as if it were always taken."""

    def function(x, scope, elementwise):
        rare = jax.named_scope(scope)(lambda x: elementwise(x @ x) @ x)
        return jax.lax.cond(x[0, 0] > 0, rare, jnp.cos, x)

    # Programs that differ in a name alone are one to the compilation cache, which a test before
    # this one may have left on.
    for scope, elementwise, dots in (
        (named_scopes.RARE_BRANCH, jnp.sin, 0),
        ("other", jnp.tanh, 2),
    ):
        lowered = jax.jit(function, static_argnums=(1, 2)).lower(
            jnp.ones((8, 8)), scope, elementwise
        )
        compiled = lowered.compile()
        program = hlo.read_program(compiled)
        executed = [instruction.opcode for _, instruction, _ in program.executed()]
        assert executed.count("dot") == dots
