"""What the compiled step sends between devices: weights and gradients, never the batch."""

import re

import pytest

from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import sharding
from keel_jax.training import step as step_lib
from tests import conftest

BATCH, TIME = 24, 20  # sizes that no parameter has


def _collectives(mesh_options) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Kind and shapes of every collective of the compiled train step."""
    cfg = conftest.tiny_config(
        train=dict(batch_size=BATCH, seq_len=TIME, loss_chunk=10), mesh=mesh_options
    )
    text = step_lib.compile_train_step(cfg, mesh_lib.make(cfg.mesh)).as_text()
    found = []
    pattern = r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    for line in text.splitlines():
        match = re.search(pattern, line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found.append(
                (match[2], [tuple(int(n) for n in shape.split(",") if n) for shape in shapes])
            )
    return found


def _batch_is_gathered(collectives) -> bool:
    """Whether any device receives activations of all rows."""
    return any(
        BATCH in shape and {TIME, 10} & set(shape)
        for _, shapes in collectives
        for shape in shapes
    )


@pytest.mark.parametrize(
    "mesh", [dict(fsdp=8), dict(data=8, fsdp=1), dict(data=2, fsdp=4)], ids=str
)
def test_weights_travel_and_the_batch_stays(mesh):
    collectives = _collectives(mesh)
    kinds = [kind for kind, _ in collectives]
    assert not _batch_is_gathered(collectives), collectives
    assert ("all-gather" in kinds) == (mesh["fsdp"] > 1), kinds
    assert set(kinds) <= {"all-gather", "all-reduce", "reduce-scatter"}, kinds
    # No gather of the whole stack of blocks: the scan gathers one block at a time.
    for kind, shapes in collectives:
        if kind == "all-gather":
            assert all(len(shape) < 3 or shape[0] == 1 for shape in shapes), shapes


def test_the_test_bites(monkeypatch):
    """Without the constraint on the stream the partitioner sends the batch around."""
    monkeypatch.setattr(sharding, "constrain", lambda array, axes: array)
    assert _batch_is_gathered(_collectives(dict(fsdp=8)))
