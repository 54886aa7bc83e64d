"""Products with split weights: equal to plain ones, and every level in the compute dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.parallel import gathering, sharding, tensor_parallel
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import hlo, traffic

_MESHES = [
    dict(fsdp=8),
    dict(fsdp=2, context=2, tensor=2),
    dict(data=2, tensor=4),
    dict(context=8),
]


def _mesh(sizes: dict, **more) -> jax.sharding.Mesh:
    return mesh_lib.make(config.MeshConfig(**{"data": 1, "fsdp": 1, **sizes, **more}))


def _inputs(mesh, dtype=jnp.float32):
    """Whole numbers, small enough that every sum is exact whatever its order: x, and weights."""
    rng = np.random.default_rng(0)
    placed = {
        "x": ((8, 16, 32), ("batch", "stream_time", "stream"), dtype),
        "query": ((32, 16), ("embed", "heads"), jnp.float32),
        "key": ((32, 8), ("embed", "kv_heads"), jnp.float32),
        "out": ((16, 32), ("heads_row", "stream"), jnp.float32),
    }
    return {
        name: jax.device_put(
            jnp.asarray(rng.integers(-1, 2, shape), kind), sharding.sharding(mesh, axes, shape)
        )
        for name, (shape, axes, kind) in placed.items()
    }


def _loss(arrays, head_dim=None):
    """Both directions, one after the other; flat results, whether in heads or not."""
    q, k = tensor_parallel.column_parallel(
        arrays["x"], (arrays["query"], arrays["key"]), ("heads", "kv_heads"), head_dim
    )
    y_BTD = tensor_parallel.row_parallel(q, arrays["out"], "heads")
    flat = [x.reshape(*x.shape[:2], -1) for x in (q, k)]
    return (y_BTD * arrays["x"]).sum() + k.sum() + q.sum(), (*flat, y_BTD)


@pytest.mark.parametrize(("head_dim", "lanes"), [(None, 128), (2, 128), (2, 2)])
@pytest.mark.parametrize("largest", [16, 2])
@pytest.mark.parametrize("sizes", _MESHES, ids=str)
def test_values_and_gradients_are_those_of_plain_products(
    sizes, largest, head_dim, lanes, monkeypatch
):
    monkeypatch.setattr(tensor_parallel, "LANES", lanes)
    monkeypatch.setattr(gathering, "MAX_GATHER", largest)
    monkeypatch.setattr(gathering, "MAX_SCATTER", largest)
    gradient = jax.value_and_grad(_loss, has_aux=True)
    mesh = _mesh(sizes)
    arrays = _inputs(mesh)
    expected = jax.jit(gradient)(jax.device_get(arrays))  # without a mesh: x @ w
    with jax.set_mesh(mesh):
        found = jax.jit(lambda arrays: gradient(arrays, head_dim))(arrays)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("largest", "num_levels"), [(16, 1), (4, 2), (2, 3)])
def test_gradients_are_scattered_level_by_level_in_the_compute_dtype(
    largest, num_levels, monkeypatch
):
    monkeypatch.setattr(gathering, "MAX_GATHER", largest)
    monkeypatch.setattr(gathering, "MAX_SCATTER", largest)
    mesh = _mesh(dict(fsdp=8))
    arrays = _inputs(mesh, jnp.bfloat16)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(_loss, has_aux=True)).lower(arrays)
    text = lowered.as_text()
    for kind, weights in (("all_gather", 3), ("reduce_scatter", 3)):
        lines = text.split(f"stablehlo.{kind}")[1:]
        # Beside the weights' levels x is gathered along time, over one device.
        over_several = [line for line in lines if "tensor<8x1xi64>" not in line.split("\n")[0]]
        assert len(over_several) == weights * num_levels, kind
        assert all("bf16" in line for line in over_several)
    kinds = {c.kind for c in traffic.collectives(hlo.read_program(lowered.compile()), mesh)}
    assert kinds <= {"all-gather", "reduce-scatter", "all-reduce"}


def test_few_tokens_are_left_to_the_partitioner():
    """One token a row, as in decoding: nothing to share out along time."""
    mesh = _mesh(dict(fsdp=2, context=2, tensor=2))
    arrays = _inputs(mesh)
    arrays["x"] = jax.device_get(arrays["x"])[:1, :1]
    run = functools.partial(jax.jit(_loss), arrays)
    with jax.set_mesh(mesh):
        _, found = run()
    _, expected = jax.jit(_loss)(jax.device_get(arrays))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
