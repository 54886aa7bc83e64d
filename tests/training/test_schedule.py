"""Schedules: exact at their corners, continuous, never above the peak, traced once."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from keel_jax import config
from keel_jax.training import schedule

NUM_STEPS = 100


def _optim(name, **options):
    defaults = {"warmup_steps": 10, "final_lr_fraction": 0.1, "wsd_decay_fraction": 0.2}
    return config.OptimConfig(schedule=name, **{**defaults, **options})


def _values(optim, num_steps, steps):
    return np.asarray(jax.vmap(schedule.unit_schedule(optim, num_steps))(jnp.asarray(steps)))


# (step, factor). Step S = 100 is one past the last update; 99 is the last update's.
CORNERS = {
    "cosine": [
        (0, 0.0),
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),
        (55, 0.55),
        (99, 0.1 + 0.9 * (1 + math.cos(math.pi * 89 / 90)) / 2),
        (100, 0.1),
        (150, 0.1),
    ],
    "wsd": [
        (0, 0.0),
        (1, 0.1),
        (9, 0.9),
        (10, 1.0),
        (45, 1.0),
        (79, 1.0),
        (80, 1.0),
        (85, 0.1 + 0.9 * (1 - math.sqrt(5 / 20))),
        (99, 0.1 + 0.9 * (1 - math.sqrt(19 / 20))),
        (100, 0.1),
        (150, 0.1),
    ],
    "constant": [(0, 0.0), (1, 0.1), (9, 0.9), (10, 1.0), (99, 1.0), (150, 1.0)],
    "linear_ramp": [(0, 0.0), (1, 0.01), (10, 0.1), (50, 0.5), (99, 0.99), (100, 1.0), (150, 1.0)],
}


@pytest.mark.parametrize("name", config.SCHEDULES)
def test_corner_points(name):
    steps, expected = zip(*CORNERS[name], strict=True)
    # fp32 cosine and square root: a few units in the last place of 1.
    np.testing.assert_allclose(_values(_optim(name), NUM_STEPS, steps), expected, atol=5e-7)


@pytest.mark.parametrize("name", config.SCHEDULES)
def test_peak_is_one_and_neighbours_are_near(name):
    num_steps = 2000
    values = _values(_optim(name, warmup_steps=200), num_steps, np.arange(num_steps + 1))
    assert values.dtype == np.float32
    assert values.min() >= 0.0
    assert values.max() == 1.0
    # The steepest places: the warm-up, 1/200, and the cooldown's first step, 0.9 sqrt(1/400).
    largest = 0.9 * math.sqrt(1 / 400) if name == "wsd" else 1 / 200
    assert np.abs(np.diff(values)).max() <= largest + 1e-6


@pytest.mark.parametrize("final", [0.0, 0.05, 0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", ["cosine", "wsd"])
def test_never_above_one_for_any_final_fraction(name, final):
    values = _values(_optim(name, final_lr_fraction=final), NUM_STEPS, np.arange(NUM_STEPS + 1))
    assert values.max() == 1.0
    np.testing.assert_allclose(values[-1], final, atol=5e-7)


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_without_warmup_the_first_update_is_at_the_peak(name):
    assert _values(_optim(name, warmup_steps=0), NUM_STEPS, [0]) == [1.0]


def test_ramp_ignores_warmup():
    steps = np.arange(NUM_STEPS)
    short, long = (_values(_optim("linear_ramp", warmup_steps=w), NUM_STEPS, steps) for w in (0, 9))
    np.testing.assert_array_equal(short, long)


def test_step_is_traced_and_result_is_a_float32_scalar():
    num_traces = 0
    factor = schedule.unit_schedule(_optim("wsd"), NUM_STEPS)

    @jax.jit
    def traced(step):
        nonlocal num_traces
        num_traces += 1
        return factor(step)

    for step in (0, 5, 50, 99):
        value = traced(jnp.int32(step))
        assert value.shape == () and value.dtype == jnp.float32
        # One compiled and one eager evaluation may round differently.
        np.testing.assert_allclose(value, factor(jnp.int32(step)), atol=2e-7)
    assert num_traces == 1


def test_wsd_may_begin_to_fall_where_the_warmup_ends():
    optim = dataclasses.replace(_optim("wsd"), warmup_steps=80)
    np.testing.assert_allclose(_values(optim, 100, [79, 80, 100]), [79 / 80, 1.0, 0.1], atol=5e-7)
