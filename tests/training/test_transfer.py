"""Rows go to the devices by their place in the global batch, however few a process reads."""

import types

import jax
import numpy as np
import pytest

from keel_jax.parallel import mesh as mesh_lib
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib
from keel_jax.training import transfer
from tests import conftest


class _Place:
    """A sharding of which this process has some devices: those with these rows."""

    def __init__(self, *rows):
        self._rows = rows

    def addressable_devices_indices_map(self, shape):
        whole = (slice(None),) * (len(shape) - 2)
        return {n: (*whole, rows, slice(None)) for n, rows in enumerate(self._rows)}


@pytest.mark.parametrize(
    ("spans", "rows"),
    [
        ([slice(None)], (0, 1)),
        ([slice(4, 8)], (1, 2)),
        ([slice(6, 7), slice(7, 8)], (3, 4)),
        # The same rows twice: the time axis, or a tensor axis, goes over processes.
        ([slice(4, 8), slice(4, 8)], (1, 2)),
        # With gaps, or not one of equal parts: everything.
        ([slice(0, 2), slice(6, 8)], (0, 1)),
        ([slice(2, 4), slice(4, 6)], (0, 1)),
        ([slice(0, 2), slice(4, 6)], (0, 1)),
    ],
)
@pytest.mark.parametrize("trials", [(), (3,)])
def test_a_process_reads_the_smallest_part_with_its_rows(spans, rows, trials):
    leaf = types.SimpleNamespace(shape=(*trials, 8, 16), sharding=_Place(*spans))
    assert transfer.rows_of(leaf) == transfer.Rows(*rows)


@pytest.mark.parametrize(
    "sizes", [dict(data=4, fsdp=2), dict(data=2, fsdp=1, context=4), dict(data=2, fsdp=2, tensor=2)]
)
def test_a_batch_arrives_as_it_is(sizes):
    cfg = conftest.tiny_config(mesh=sizes)
    abstract = step_lib.abstract_batch(cfg, mesh_lib.make(cfg.mesh))
    rng = np.random.default_rng(0)
    batch = {
        key: rng.integers(0, 64, leaf.shape).astype(leaf.dtype) for key, leaf in abstract.items()
    }
    with jax.transfer_guard("disallow"):
        found = transfer.put_batch(batch, abstract, transfer.rows_of(abstract["inputs"]))
    for key, leaf in abstract.items():
        assert found[key].sharding == leaf.sharding
        np.testing.assert_array_equal(found[key], batch[key])


def test_spread_values_are_fetched_whole():
    cfg = conftest.tiny_config(trials=dict(peak_lr=(1e-2,) * 8), mesh=dict(trial=8, fsdp=1))
    mesh = mesh_lib.make(cfg.mesh)
    place = state_lib.shardings(cfg, mesh).peak_lr
    rates = np.arange(8, dtype=np.float32)
    spread = transfer.put_everywhere(rates, place)
    assert spread.sharding == place
    np.testing.assert_array_equal(transfer.fetch(spread), rates)
