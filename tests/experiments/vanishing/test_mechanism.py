"""The products are those of the equation: a stack whose path is known has that path."""

import numpy as np
import pytest

from experiments.vanishing import mechanism


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


def test_the_path_is_the_product_of_the_norms_divisions():
    """Computed from vectors: x and F at the angle θ, and the length of their sum."""
    ratio, cosine, num_blocks = 0.3, 0.6, 5
    x, f = np.array([1.0, 0.0]), ratio * np.array([cosine, np.sqrt(1 - cosine**2)])
    run = mechanism.course(_records(ratio, cosine, num_blocks=num_blocks))
    num_sublayers = 2 * num_blocks - 3
    assert run.path[0] == pytest.approx(np.linalg.norm(x + f) ** -num_sublayers)
    assert run.orthogonal[0] == pytest.approx((1 + ratio**2) ** (-num_sublayers / 2))
    assert run.exponent[0] == pytest.approx(num_sublayers * ratio * cosine)


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


def test_a_cotangent_of_0_closes_the_path():
    """Also where there is none at the top."""
    records = _records()
    records["cotangent_rms"][1] = 0.0
    run = mechanism.course(records)
    assert run.reach[1] == mechanism.LEAST and run.first_closed() == 20
    told = mechanism.describe(run)
    assert told["first_closed_step"] == 20 and told["least_reach"] == mechanism.LEAST
    assert mechanism.describe(mechanism.course(_records()))["first_closed_step"] is None


def test_a_fit_finds_the_exponent_and_the_error():
    """Of runs whose reach is the square of the path; records of an open path say nothing."""
    runs = []
    for cosine in (0.0, 0.5, 0.9):
        run = mechanism.course(_records(0.5, cosine, num_blocks=12, bottom=1.0))
        runs.append(mechanism.Course(**{**vars(run), "reach": run.path**2}))
    found = mechanism.fit(runs, "path")
    assert found["slope"] == pytest.approx(2.0)
    decades = [np.log10(run.path[0]) for run in runs]
    assert found["error_decades"] == pytest.approx(np.sqrt(np.mean(np.square(decades))))
    assert mechanism.fit([mechanism.course(_records(bottom=0.9))], "path") is None
