"""The product with the cosine is what norms do, as a stack of them shows by its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vanishing import mechanism
from keel_jax.model.residual import norms


def _records(ratio=0.1, cosine=0.5, num_records=2, num_blocks=4, bottom=0.25) -> dict:
    ones = np.ones((num_records, num_blocks, 2))
    records = {
        "step": np.arange(10, 10 * num_records + 1, 10),
        "branch_ratio": ratio * ones,
        "branch_cosine": cosine * ones,
        "branch_rms": 3.0 * ones,
        "stream_rms": ones.copy(),
        "cotangent_rms": 2.0 * ones,
        "position_cosine": 0.9 * ones,
    }
    # Block 0 and the last sub-layer have no part in the products.
    for name in ("branch_ratio", "branch_cosine"):
        records[name][:, 0] = 7.0
        records[name][:, -1, -1] = 7.0
    records["cotangent_rms"][:, 1, 0] = 2.0 * bottom
    return records


def _stack(x_TD, branch, gain: float, alpha: float, num_sublayers: int) -> tuple:
    """Records of x' = LN(αx + F(x)): forwards as telemetry has them, backwards by jax.vjp.

    The first two sub-layers stand for block 0, whose records do not matter.
    """

    def rms(x):
        return jnp.sqrt(jnp.mean(x * x))

    def sublayer(x):
        return norms.rms_norm(alpha * x + branch(x), gain * jnp.ones(x.shape[-1]), 0.0)

    streams = [x_TD]
    for _ in range(num_sublayers):
        streams.append(sublayer(streams[-1]))
    cotangents = [jax.random.normal(jax.random.key(1), x_TD.shape)]
    for x in reversed(streams[:-1]):
        cotangents.append(jax.vjp(sublayer, x)[1](cotangents[-1])[0])
    cotangents.reverse()
    rows = []
    for x, cotangent in zip(streams[:-1], cotangents[:-1], strict=True):
        f = branch(x)
        rows.append(
            {
                "branch_ratio": rms(f) / (alpha * rms(x)),
                "branch_cosine": jnp.mean(x * f) / (rms(x) * rms(f)),
                "branch_rms": rms(f),
                "stream_rms": rms(x),
                "cotangent_rms": rms(cotangent),
                "position_cosine": 0.0,
            }
        )
    records = {
        name: np.array([float(row[name]) for row in rows]).reshape(1, -1, 2)
        for row in [rows[0]]
        for name in row
    }
    return records | {"step": np.array([10])}


@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_a_branch_common_to_the_tokens_loses_what_the_path_says(gain):
    """Of a stack of real norms, and a gradient in a random direction."""
    common = 10.0 * jax.random.normal(jax.random.key(0), (64,))
    x_TD = norms.rms_norm(jax.random.normal(jax.random.key(2), (128, 64)), None, 0.0)
    run = mechanism.course(
        _stack(x_TD, lambda x: jnp.broadcast_to(common, x.shape), gain, 64.0, 30)
    )
    assert run.path[0] < 0.05 and run.path[0] < 0.1 * run.orthogonal[0]
    # The norms also project the cotangent's part along the stream away: 1 of 64 directions.
    assert run.reach[0] == pytest.approx(run.path[0], rel=0.05)


def test_a_branch_along_each_tokens_own_stream_loses_nothing():
    """Its own derivative makes up for the division, so that the path alone misleads."""
    x_TD = norms.rms_norm(jax.random.normal(jax.random.key(2), (128, 64)), None, 0.0)
    run = mechanism.course(_stack(x_TD, lambda x: 10.0 * x, 1.0, 64.0, 30))
    assert run.path[0] < 0.02 and run.reach[0] == pytest.approx(1.0, rel=0.05)


def test_at_right_angles_both_products_are_the_papers():
    run = mechanism.course(_records(cosine=0.0))
    np.testing.assert_array_equal(run.path, run.orthogonal)


def test_the_cotangent_is_taken_relative_to_the_stream():
    """A stream that is twice as long at the bottom needs half of the cotangent."""
    records = _records(bottom=0.25)
    assert mechanism.course(records).reach[0] == 0.25
    records["stream_rms"][:, 1, 0] *= 2
    assert mechanism.course(records).reach[0] == 0.5


def test_the_sublayers_begin_with_attention():
    records = _records(num_blocks=3)
    records["branch_cosine"][:, 1:, 1] = 0.0
    run = mechanism.course(records)
    assert run.attention_share[0] == 1.0
    assert run.exponent[0] == pytest.approx(2 * 0.05)


def test_a_gradient_of_0_is_lost():
    records = _records()
    records["cotangent_rms"][1, 1, 0] = 0.0
    run = mechanism.course(records)
    assert run.reach[1] == mechanism.LEAST and run.first_lost() == 20 and run.is_lost
    assert mechanism.describe(run)["first_lost_step"] == 20
    kept = mechanism.course(_records())
    assert mechanism.describe(kept)["first_lost_step"] is None and not kept.was_lost


@pytest.mark.parametrize("name", ["branch_cosine", "cotangent_rms", "branch_ratio"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_records_that_are_not_finite_are_left_out(name, value):
    records = _records(num_records=3)
    records[name][1, -1, -1 if name == "cotangent_rms" else 0] = value
    assert list(mechanism.course(records).step) == [10, 30]
    records[name][:, -1, 0] = records["cotangent_rms"][:, -1, -1] = np.nan
    assert mechanism.course(records) is None


def test_no_cotangent_at_the_top_is_no_ratio():
    records = _records()
    records["cotangent_rms"][0, -1, -1] = 0.0
    assert list(mechanism.course(records).step) == [20]


def test_the_error_of_a_product_is_that_of_its_worse_record():
    """Where it is silent, and where it cries wolf."""
    run = mechanism.course(_records(num_records=3, bottom=1.0))

    def error(reach, path):
        changed = {"reach": np.array(reach), "path": np.array(path)}
        return mechanism.error_decades(mechanism.Course(**{**vars(run), **changed}), "path")

    assert error([1, 0.1, 1], [1, 0.1, 1]) == 0
    assert error([1, 0.01, 1], [1, 1, 0.9]) == pytest.approx(2)
    assert error([1, 1, 0.9], [1, 0.001, 1]) == pytest.approx(3)
    assert error([1, 0.6, 1], [1, 0.7, 1]) is None
    # At the floor nothing is known but that it is small.
    assert error([1, mechanism.LEAST, 0.1], [1, 1e-9, 0.1]) == 0
    assert error([mechanism.LEAST] * 3, [1, 1, 1]) is None
