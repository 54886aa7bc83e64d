"""The ring: equal to attention on one device, in half the work, sending blocks to a neighbour."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.model import attention
from keel_jax.parallel import manual, ring, sharding
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import hlo, traffic
from tests import attention_cases as cases


def _mesh(**sizes):
    sizes = {"fsdp": 1, "data": 1, **sizes}
    num_devices = int(np.prod(list(sizes.values())))
    return mesh_lib.make(config.MeshConfig(**sizes), jax.devices()[:num_devices])


def _order(name: str, num_tokens: int, size: int) -> np.ndarray:
    """The place in the sequence of each token as it lies; zigzag by its definition."""
    if name == "random":
        return np.random.default_rng(1).permutation(num_tokens)
    if name == "zigzag":
        parts = np.arange(num_tokens).reshape(2 * size, -1)
        return np.concatenate([parts[[i, 2 * size - 1 - i]].ravel() for i in range(size)])
    return np.arange(num_tokens)


def _run(mesh, place, arrays, kernel="ring"):
    """Output and gradients of tokens that lie in the order `place`, back in their own."""
    with jax.set_mesh(mesh):
        found = cases.run(kernel, *(x[:, place] for x in arrays), index=place)
    return [x[:, np.argsort(place)] for x in found]


@pytest.mark.parametrize(
    "sizes, order, dtype",
    [
        (dict(context=8), "zigzag", "float32"),
        (dict(context=4), "zigzag", "bfloat16"),
        (dict(context=2, fsdp=2, tensor=2), "random", "float32"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (dict(context=2), "consecutive", "float32"),
                (dict(context=4), "zigzag", "float32"),
                (dict(context=8), "random", "float32"),
                (dict(context=2, tensor=2), "zigzag", "float32"),
                (dict(context=4, fsdp=2), "consecutive", "float32"),
            )
        ),
    ],
    ids=str,
)
def test_the_ring_equals_one_device(sizes, order, dtype):
    """Three query heads a key/value head; three tokens a part of the zigzag on 8 devices."""
    arrays = cases.inputs((2, 48, 6, 8), 2, dtype)
    found = _run(_mesh(**sizes), _order(order, 48, sizes["context"]), arrays)
    cases.assert_equal(found, cases.run("reference", *arrays), dtype)


@pytest.mark.parametrize("num_tokens, max_chunk", [(7, 512), (129, 50)])
def test_chunks_of_any_size_change_nothing(monkeypatch, num_tokens, max_chunk):
    """On one device; lengths that no chunk divides."""
    monkeypatch.setattr(ring, "MAX_CHUNK", max_chunk)
    arrays = cases.inputs((2, num_tokens, 4, 8), 2)
    cases.assert_equal(cases.run("ring", *arrays), cases.run("reference", *arrays), "float32")


@pytest.mark.parametrize("seen", [25, 47])
def test_masks_by_gradient(seen):
    """Blocks without any visible key, on three of four devices at times, give zeros, no NaN."""
    with jax.set_mesh(_mesh(context=4)):
        cases.assert_masked("ring", 48, seen)


def test_zigzag_is_the_order_that_it_says():
    for size in (2, 8):
        tokens = np.arange(2 * 48).reshape(2, 48)
        with jax.set_mesh(_mesh(context=size)):
            found = attention.in_order_of("ring", {"tokens": tokens})["tokens"]
        np.testing.assert_array_equal(found, tokens[:, _order("zigzag", 48, size)])


def test_a_sequence_without_two_parts_a_device_is_refused():
    with jax.set_mesh(_mesh(context=8)):
        with pytest.raises(ValueError, match="24 tokens does not have 2 x 8 .* multiple of 16"):
            attention.in_order_of("ring", np.zeros((1, 24), np.int32))


def _executed(monkeypatch, order, num_chunks=8, size=4):
    """How often each device computed a chunk of each origin, forward: {(device, turn): count}."""
    counts = collections.Counter()
    add_chunk = ring._add_chunk

    def counted(sums, q, query, kv, key):
        device = jax.lax.axis_index("context")
        jax.debug.callback(
            lambda device, index: counts.update([(int(device), int(index))]),
            device,
            key.index.min(),
        )
        return add_chunk(sums, q, query, kv, key)

    monkeypatch.setattr(ring, "_add_chunk", counted)
    arrays = cases.inputs((1, num_chunks * 2, 2, 4), 1)
    place = _order(order, num_chunks * 2, size)
    with jax.set_mesh(_mesh(context=size)):
        q, k, v, segments, _ = (x[:, place] for x in arrays)
        attend = functools.partial(ring.attend, ring=ring.Ring("context", size))
        axes = (
            attention.QUERY_AXES,
            attention.KEY_AXES,
            attention.KEY_AXES,
            attention.TOKEN_AXES,
            attention.TOKEN_AXES,
        )
        jax.jit(manual.over_mesh(attend, axes, attention.QUERY_AXES))(
            q, k, v, segments, place[None].astype(np.int32)
        ).block_until_ready()
        jax.effects_barrier()
    owner = dict(zip(place.tolist(), np.arange(num_chunks * 2) * size // place.size, strict=True))
    by_turn = collections.Counter()
    for (device, index), count in counts.items():
        by_turn[device, int(device - owner[index]) % size] += count
    return by_turn


def test_half_of_the_chunks_are_skipped_on_each_device_at_each_turn(monkeypatch):
    """Two chunks of queries and two of keys meet at each turn, 4 pairs; on 4 devices."""
    counts = _executed(monkeypatch, "zigzag")
    expected = {(d, turn): 3 if turn == 0 else 2 for d in range(4) for turn in range(4)}
    assert counts == expected


def test_consecutive_tokens_load_the_last_device_most(monkeypatch):
    counts = _executed(monkeypatch, "consecutive")
    assert [sum(counts[d, turn] for turn in range(4)) for d in range(4)] == [3, 7, 11, 15]


def _compiled(size, tokens_a_device, kernel="ring", num_trials=0):
    """The gradient's executable for `size` devices, as the step would place the arrays."""
    shape = (1, tokens_a_device * size, 4, 16)

    def loss(q, k, v, segments):
        index = jnp.broadcast_to(jnp.arange(shape[1]), segments.shape)
        index = attention.in_order_of(kernel, index)
        return attention.attend(
            q,
            k,
            v,
            kernel=kernel,
            query_index_BT=index,
            key_index_BS=index,
            query_segment_ids_BT=segments,
            key_segment_ids_BS=segments,
        ).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    mesh = _mesh(context=size)
    trials = (num_trials,) if num_trials else ()
    if trials:
        gradient = jax.vmap(gradient, spmd_axis_name="trial")
    with jax.set_mesh(mesh):

        def whole(shape, axes, dtype):
            axes = (*(("trial",) if trials else ()), *axes)
            place = sharding.sharding(mesh, axes, (*trials, *shape))
            return jax.ShapeDtypeStruct((*trials, *shape), dtype, sharding=place)

        kv = whole((*shape[:2], 2, 16), attention.KEY_AXES, "float32")
        return (
            jax.jit(gradient)
            .lower(
                whole(shape, attention.QUERY_AXES, "float32"),
                kv,
                kv,
                whole(shape[:2], attention.TOKEN_AXES, "int32"),
            )
            .compile()
        )


def _collectives(compiled, size: int) -> set[str]:
    """Kinds of what travels between the `size` devices."""
    program = hlo.read_program(compiled)
    return {found.kind for found in traffic.collectives(program, _mesh(context=size))}


def test_only_neighbours_talk():
    """Blocks go to the next device, and nothing else happens between devices."""
    assert _collectives(_compiled(4, 32), 4) == {"collective-permute"}
    # The reference, left to the partitioner, gathers keys and values.
    assert "all-gather" in _collectives(_compiled(4, 32, "reference"), 4)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_ring():
    """At 256 tokens a device: 4% more, the index of all tokens; [T, 8 T] scores never exist."""
    found = {size: _compiled(size, 256).memory_analysis().temp_size_in_bytes for size in (2, 8)}
    assert found[8] < 1.05 * found[2], found
    scores_bytes = 4 * 4 * 256 * 8 * 256
    assert found[8] < scores_bytes / 2, (found, scores_bytes)
    reference = _compiled(8, 256, "reference").memory_analysis().temp_size_in_bytes
    assert reference > scores_bytes


def test_skipping_survives_trials():
    """vmapped, a branch on batched values becomes a selection, for which both are computed."""
    plain, trials = _compiled(2, 32).as_text(), _compiled(2, 32, num_trials=2).as_text()
    assert plain.count(" conditional(") == trials.count(" conditional(") > 2
