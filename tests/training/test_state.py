"""Shapes of a state are known without a trace of the model, and are those of the state itself."""

import jax
import pytest

from keel_jax import config
from keel_jax.model import lm
from keel_jax.training import state as state_lib
from tests import conftest


def _described(tree):
    return {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("topology", config.TOPOLOGIES)
def test_shapes_are_those_of_the_initial_state(topology):
    cfg = conftest.tiny_config(model=dict(topology=topology))
    assert _described(state_lib.shapes(cfg)) == _described(
        jax.eval_shape(state_lib.initializer(cfg))
    )


@pytest.mark.parametrize("name", config.OPTIMIZERS)
@pytest.mark.parametrize("trials", [{}, dict(seed=(0, 1, 2))])
def test_so_are_those_of_every_optimizer_and_of_several_trials(name, trials):
    cfg = conftest.tiny_config(optim=dict(name=name), trials=trials, model=dict(num_blocks=2))
    assert _described(state_lib.shapes(cfg)) == _described(
        jax.eval_shape(state_lib.initializer(cfg))
    )


def test_options_that_change_no_parameter_share_one_trace():
    plain = conftest.tiny_config(model=dict(num_blocks=5)).model
    other = conftest.tiny_config(
        model=dict(num_blocks=5, attention="splash", recompute=dict(plan="block"))
    ).model
    before = lm._boxed_shapes.cache_info()
    assert _described(lm.shapes(plain)) == _described(lm.shapes(other))
    after = lm._boxed_shapes.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
