"""The buffer assignment, against bytes that are known."""

import jax
import jax.numpy as jnp
import pytest

from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import buffers, cost_model, hlo, memory, resolve
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib
from tests import conftest


def _measure(lowered, directory, params=()):
    compiled = lowered.compile(compiler_options=buffers.dump_options(str(directory)))
    program = hlo.read_program(compiled)
    allocations = buffers.read_dump(str(directory))
    return memory.measure_memory(allocations, program, params, 0), compiled


def test_arguments_are_the_shards_of_the_state_and_the_batch(tmp_path):
    cfg = conftest.tiny_config(train=dict(loss_chunk=4))
    mesh = mesh_lib.make(cfg.mesh)
    state, batch = state_lib.abstract(cfg, mesh), step_lib.abstract_batch(cfg, mesh)
    shards = cost_model.measure_shards(state, batch)
    measured, compiled = _measure(
        step_lib.lower_train_step(resolve.resolve(cfg, mesh), mesh), tmp_path, shards.param_shapes
    )
    assert measured.arguments == shards.total
    assert shards.batch == 4 * 4 * 16  # four arrays of one row of 16 tokens
    stats = compiled.memory_analysis()
    assert stats and measured.arguments == stats.argument_size_in_bytes
    assert measured.temporaries == sum(measured.by_kind.values())
    assert measured.by_kind["gradients"] > 0 and measured.by_kind["activations"] > 0
    # Largest first, each with what it is.
    sizes = [buffer.bytes for buffer in measured.largest]
    assert sizes == sorted(sizes, reverse=True) and all(b.shape for b in measured.largest[:3])


def test_the_largest_temporary_is_named(tmp_path):
    """The [64, 1000] product of a program whose result is one number."""
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    w = jax.ShapeDtypeStruct((32, 1000), jnp.float32)
    lowered = jax.jit(lambda x, w: jnp.sort(x @ w, axis=0)[3, 5]).lower(x, w)
    measured, _ = _measure(lowered, tmp_path)
    assert measured.arguments == 4 * (64 * 32 + 32 * 1000)
    assert (
        measured.largest[0].bytes == 4 * 64 * 1000 and measured.largest[0].shape == "f32[64,1000]"
    )
    assert measured.temporaries >= 4 * 64 * 1000


def test_each_byte_belongs_to_the_largest_array_there():
    pieces = tuple(
        buffers.Piece(name, (), offset, size)
        for name, offset, size in (("a", 0, 10), ("b", 4, 4), ("c", 8, 12), ("d", 30, 2))
    )
    allocation = buffers.Allocation(40, 0, None, False, False, False, pieces)
    shares = [0] * 5
    for piece, size in memory._largest_pieces(allocation):
        shares[4 if piece is None else piece] += size
    # c beats a on [8, 10); b lies within a; [20, 30) and [32, 40) are nobody's.
    assert shares == [8, 0, 12, 2, 18]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (2.00T) exceeds available HBM (15.75G).",
            (2 * 2**40, round(15.75 * 2**30)),
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_the_compilers_refusal(message, expected):
    assert memory.out_of_memory(message) == expected
