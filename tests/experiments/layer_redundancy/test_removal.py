"""Losses without parts of a model, by hand; the greedy search."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.layer_redundancy import removal
from keel_jax import evaluate
from tests import conftest
from tests.experiments.layer_redundancy import NUM_BLOCKS


@pytest.fixture(scope="module")
def model(run_dir):
    return removal.load(run_dir / "trials/000", num_sequences=8)


def test_with_nothing_removed_it_is_the_models_own_loss(model, run_dir):
    """On the whole validation split, `evaluate` agrees."""
    targets = int(evaluate.evaluate(run_dir / "trials/000")["num_tokens"])
    everything = removal.load(run_dir / "trials/000", num_sequences=-(-targets // 16))
    want = evaluate.evaluate(run_dir / "trials/000")["loss_nats_per_token"]
    assert everything.loss(np.zeros((NUM_BLOCKS, 2), bool)) == pytest.approx(want, rel=1e-5)
    assert model.step == 6 and model.seed == 3
    assert model.peak_lr == conftest.tiny_config().optim.peak_lr != 1.0


def test_removal_is_of_the_right_part(model):
    """Each loss is that of weights whose last matrix is 0 there; so is a block's."""

    def zeroed(block, *names):
        tree = dict(model.params["block"])
        for branch, last in names:
            matrix = jnp.asarray(tree[branch][last]).at[block].set(0.0)
            tree[branch] = {**tree[branch], last: matrix}
        params = {**model.params, "block": tree}
        return dataclasses.replace(model, params=params).loss(np.zeros((NUM_BLOCKS, 2), bool))

    ends = ("attention", "out"), ("ffn", "down")
    by_sublayer = removal.without_each_sublayer(model)
    want = [zeroed(block, end) for block in range(NUM_BLOCKS) for end in ends]
    np.testing.assert_allclose(by_sublayer, want, rtol=1e-5)
    by_block = removal.without_each_block(model)
    np.testing.assert_allclose(
        by_block, [zeroed(block, *ends) for block in range(NUM_BLOCKS)], rtol=1e-5
    )
    assert len(set(np.round(by_sublayer, 7))) == 2 * NUM_BLOCKS  # all different: none is confused


def test_one_program_serves_all_masks_and_all_seeds(model, run_dir):
    program: Any = removal.loss_program(model.cfg)
    removal.without_each_block(model)
    before = program._cache_size()
    other = removal.load(run_dir / "trials/001", num_sequences=8)
    removal.without_each_sublayer(other, removal.IDENTITY)
    assert removal.loss_program(other.cfg) is program and program._cache_size() == before


def test_identity_and_branch_differ_by_a_gain_in_keel_only_where_there_is_a_norm(model):
    """Block 0's attention has no outer norm; its FFN's lifts the embedding to RMS 1."""
    branch, identity = (removal.without_each_sublayer(model, kind) for kind in removal.KINDS)
    assert identity[0] == pytest.approx(branch[0], rel=1e-6)
    assert abs(identity[1] - branch[1]) > 1e-3


def test_no_identity_where_sublayers_store_what_came_before(model):
    attn_res = dataclasses.replace(model.cfg.model, topology="attention_residuals", alpha=None)
    other = dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, model=attn_res))
    with pytest.raises(ValueError, match="remove branches"):
        removal.without_each_sublayer(other, removal.IDENTITY)


class _Additive:
    """A model where each block's removal costs its own, and 1 more for each pair of neighbours."""

    def __init__(self, costs):
        self.costs, self.num_blocks = np.array(costs), len(costs)

    def loss(self, removed_N2, kind=removal.BRANCH):
        del kind
        gone = removed_N2.all(axis=1)
        return float(self.costs[gone].sum() + (gone[1:] & gone[:-1]).sum())


def test_greedy_sees_what_single_removals_do_not():
    model = _Additive([5.0, 0.1, 0.2, 0.3])
    single = removal.without_each_block(model)
    blocks, losses = removal.greedy(model, single, num_candidates=2, most_loss=0.5)
    # Block 2 alone is cheaper than 3, next to the removed block 1 it is not.
    assert blocks == [1, 3, 2] and losses == pytest.approx([0.1, 0.4, 2.6])
    assert removal.greedy(model, single, num_candidates=1, most_loss=0.5)[0] == [1, 2]
    assert removal.greedy(model, single, num_candidates=4, most_loss=99)[0] == [1, 3, 2, 0]
