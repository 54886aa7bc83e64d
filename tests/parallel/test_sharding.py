"""The rule table: what it refuses, by name, and that every leaf of the state goes through it."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from keel_jax import config
from keel_jax.model import lm
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import sharding
from keel_jax.training import state as state_lib
from tests import conftest

MESH = dict(data=2, fsdp=4)


def _mesh():
    return mesh_lib.make(config.MeshConfig(**MESH))


def _names(path) -> str:
    return "/".join(entry.key for entry in path)


def test_an_unknown_logical_axis_is_named_beside_the_known():
    with pytest.raises(ValueError, match=r"axis 'embd' has no rule; known: .*\bembed\b"):
        sharding.spec(("vocab", "embd"))
    with pytest.raises(ValueError, match="axis 'embd' has no rule"):
        sharding.sharding(_mesh(), ("vocab", "embd"), (8, 8))


def test_two_dimensions_on_one_mesh_axis_are_refused(monkeypatch):
    monkeypatch.setitem(sharding.RULES, "ffn", ("data", "fsdp"))
    with pytest.raises(ValueError, match=r"'embed' and 'ffn' of .* both claim mesh axis 'fsdp'"):
        sharding.spec(("blocks", "embed", "ffn"))


def test_a_size_that_devices_cannot_share_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"a/b of shape \(6, 5\): .*'embed' of size 6 .* 4 dev"):
        sharding.sharding(_mesh(), ("embed", "vocab"), (6, 5), "a/b")
    with pytest.raises(ValueError, match=r"'batch' of size 12 is not a multiple of the 8 devices"):
        sharding.sharding(_mesh(), ("batch", "time"), (12, 5))


def test_a_shape_without_its_axes_is_refused():
    with pytest.raises(ValueError, match=r"a: shape \(8,\) does not have the axes"):
        sharding.sharding(_mesh(), ("embed", "vocab"), (8,), "a")


# Of Keel: depth over stages, the model dimension over fsdp and context, heads, FFN and vocabulary
# over tensor; embedding and output over stages too.
_EMBED, _ROW = ("fsdp", "context"), ("tensor", "fsdp", "context")
_TABLE = ("fsdp", "context", "stage")
_KEEL = {
    "block/attention/inner_norm": PartitionSpec("stage", None),
    "block/attention/key": PartitionSpec("stage", _EMBED, "tensor"),
    "block/attention/out": PartitionSpec("stage", _ROW, None),
    "block/attention/outer_norm": PartitionSpec("stage", None),
    "block/attention/query": PartitionSpec("stage", _EMBED, "tensor"),
    "block/attention/value": PartitionSpec("stage", _EMBED, "tensor"),
    "block/ffn/down": PartitionSpec("stage", _ROW, None),
    "block/ffn/gate": PartitionSpec("stage", _EMBED, "tensor"),
    "block/ffn/inner_norm": PartitionSpec("stage", None),
    "block/ffn/outer_norm": PartitionSpec("stage", None),
    "block/ffn/up": PartitionSpec("stage", _EMBED, "tensor"),
    "embedding/table": PartitionSpec("tensor", _TABLE),
    "output/matrix": PartitionSpec(_TABLE, "tensor"),
}


def _canonical(spec) -> tuple:
    """Names of mesh axes by dimension: a name and a tuple of one name are the same."""
    return tuple(entry if isinstance(entry, tuple) or entry is None else (entry,) for entry in spec)


def test_every_parameter_lies_where_the_table_says():
    cfg = conftest.tiny_config(mesh=MESH)
    places = state_lib.shardings(cfg, _mesh()).params
    found = {_names(path): _canonical(p.spec) for path, p in jax.tree.leaves_with_path(places)}
    assert found == {name: _canonical(spec) for name, spec in _KEEL.items()}


@pytest.mark.parametrize("topology", config.TOPOLOGIES)
def test_every_dimension_of_every_parameter_has_a_rule(topology):
    cfg = conftest.tiny_config(model=dict(topology=topology))
    axes = lm.logical_axes(lm.LanguageModel(cfg.model))
    for path, names in jax.tree.leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple)):
        assert set(names) <= set(sharding.RULES), _names(path)


@pytest.mark.parametrize("optimizer", config.OPTIMIZERS)
@pytest.mark.parametrize("trials", [(), (1, 2)], ids=["alone", "trials"])
def test_every_leaf_of_the_state_has_a_place(optimizer, trials):
    """Moments lie with their parameter, split in the same places; the step accepts them all."""
    cfg = conftest.tiny_config(optim=dict(name=optimizer), trials=dict(seed=trials), mesh=MESH)
    mesh = _mesh()
    state = state_lib.abstract(cfg, mesh)
    leaves = jax.tree.leaves_with_path(state)
    assert len(leaves) == len(jax.tree.leaves(jax.eval_shape(state_lib.initializer(cfg))))
    places = {tuple(path): leaf for path, leaf in jax.tree.leaves_with_path(state.params)}
    num_moments = 0
    for path, leaf in leaves:
        where = jax.tree_util.keystr(path)
        assert leaf.sharding.mesh == mesh, where
        leaf.sharding.shard_shape(leaf.shape)  # raises where a dimension cannot be shared
        if path[0].name != "opt_state":
            continue
        [mirrored] = [p for n, p in places.items() if tuple(path[-len(n) :]) == n] or [None]
        if mirrored is not None and mirrored.shape == leaf.shape:
            assert leaf.sharding.spec == mirrored.sharding.spec, where
            num_moments += leaf.ndim > 1 and np.prod(leaf.shape) > 1
    # Adafactor's moments of matrices are rows and columns; its gains' are whole.
    assert num_moments >= (4 if optimizer == "adafactor" else len(places))
