"""After resolving nothing is left to "auto", and what was given is kept."""

import jax

from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import recompute_choice, resolve
from tests import conftest


def test_a_plan_that_is_given_is_kept():
    cfg = conftest.tiny_config(
        model=dict(num_blocks=64, recompute=dict(plan="segments", segment_blocks=(8,)))
    )
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    resolved = resolve.resolve(cfg, mesh)
    assert resolved.model.recompute == cfg.model.recompute
    text = recompute_choice.describe(resolve.predict(resolved, mesh), resolved, is_chosen=False)
    assert "segments of 8 blocks" in text and "(chosen)" not in text


def test_after_resolving_nothing_is_left_to_auto():
    cfg = conftest.tiny_config(model=dict(recompute=dict(plan="auto")))
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    resolved = resolve.resolve(cfg, mesh)
    assert (resolved.model.attention, resolved.model.recompute.plan) == ("reference", "block")
    assert resolve.resolve(resolved, mesh) == resolved
