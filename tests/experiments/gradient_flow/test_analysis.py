"""The predictions of gradient flow on made-up points."""

import numpy as np
import pytest

from experiments.gradient_flow import analysis, points

TINY = points.PRESETS["tiny"]


def _gain(name: str, num_blocks: int) -> float:
    """The closed form's gain from block 0's output to the top."""
    return analysis.theory_gain(name, num_blocks, TINY)[analysis.BLOCK_1]


def test_checks_hold_where_the_theory_does_and_fail_where_not():
    """On points whose gains are the theory's own, and on those of another alpha."""

    def point(name, num_blocks, kind, gain, gradient=1.0):
        vector = np.full(2 * num_blocks, gain)
        keys = ("path_gain", "gain", "predicted_path_gain", "stream_rms")
        return {
            "name": name,
            "num_blocks": num_blocks,
            "seed": 0,
            "kind": kind,
            **{key: vector for key in keys},
            "branch_gradient_rms": np.full(2 * num_blocks, gradient),
        }

    def checks(shift):
        measured = [
            point(name, n, "unit", _gain(name, n) ** shift)
            for name, n in (
                ("keel", 32),
                ("keel, alpha = sqrt(L)", 32),
                ("keel, alpha = 10", 512),
                ("deepnorm", 256),
                ("post_ln", 32),
            )
        ]
        measured += [point("keel", n, "initial", 1.0, n ** -float(shift)) for n in (32, 256, 512)]
        measured += [
            point("pre_ln", 32, "initial", float(shift)),
            point("post_ln", 32, "initial", 1.0 if shift == 1 else 1e-3),
        ]
        return analysis.checks(analysis.numbers(measured, TINY))

    holding, failing = checks(1), checks(2)
    assert len(holding) == 9 and all(check["holds"] for check in holding.values())
    # Keel's own theory is near 1 at any power.
    assert [key for key, check in failing.items() if check["holds"]] == ["unit path, keel"]


def test_trained_models_of_several_rates_are_no_seeds():
    kind = {"name": "keel", "num_blocks": 2, "kind": "trained", "step": 6}
    with pytest.raises(ValueError, match="no seeds of one run.*0.01, 0.03"):
        analysis.numbers(
            [kind | {"seed": n, "peak_lr": lr} for n, lr in enumerate((1e-2, 3e-2))], TINY
        )
