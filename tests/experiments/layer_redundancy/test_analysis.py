"""Numbers and verdicts on made-up models."""

import numpy as np
import pytest

from experiments.layer_redundancy import analysis


def _made_up(topology: str, seed: int, deltas, greedy_losses) -> dict:
    """A model of loss 1 whose blocks' removal costs these nats."""
    deltas = np.array(deltas)
    return {
        "topology": topology,
        "seed": seed,
        "peak_lr": 1e-2,
        "num_blocks": len(deltas),
        "step": 1,
        "loss": 1.0,
        "without_block": 1 + deltas,
        "without_sublayer": np.repeat(1 + deltas / 2, 2),
        "without_sublayer_identity": np.repeat(1 + deltas, 2),
        "rotation_radians": np.full(2 * len(deltas), 0.1),
        "greedy_blocks": list(range(len(greedy_losses))),
        "greedy_losses": greedy_losses,
    }


def _world(keel_shallow: float, keel_losses):
    rising = np.linspace(0.1, 0.3, 6)
    models = []
    for seed in range(3):
        jitter = 0.001 * seed
        models.append(
            _made_up("keel", seed, [2, 1, *(rising + keel_shallow + jitter)], keel_losses)
        )
        models.append(_made_up("pre_ln", seed, [2, 1, *(rising + jitter)], [1.01, 1.05, 1.09, 2]))
    return models


def test_the_verdicts_follow_the_models():
    checks = analysis.numbers(_world(0.3, [1.02, 2]))["checks"]
    assert len(checks) == 6 and all(check["holds"] for check in checks.values())
    checks = analysis.numbers(_world(-0.05, [1.01, 1.02, 1.03, 1.04, 2]))["checks"]
    assert checks["shallow blocks, keel above pre_ln"]["verdict"] == "reversed"
    assert checks["removable blocks, pre_ln above keel"]["verdict"] == "reversed"
    flat = [_made_up("keel", seed, [0.1] * 4 + [1.0], [2]) for seed in range(3)]
    checks = analysis.checks(flat)
    assert not checks["first blocks, keel"]["holds"] and len(checks) == 2


def test_pairs_are_of_the_same_seed():
    """Where each lacks another one, one pair is left, which decides nothing."""
    models = _world(0.3, [1.02, 2])
    lacking = [m for m in models if (m["topology"], m["seed"]) not in {("keel", 0), ("pre_ln", 2)}]
    pair = analysis.checks(lacking)["shallow blocks, keel above pre_ln"]
    assert pair["num_seeds"] == 1 and pair["verdict"] == "undecided"
    assert analysis.checks(models)["shallow blocks, keel above pre_ln"]["num_seeds"] == 3


@pytest.mark.parametrize("other", [dict(peak_lr=3e-2), dict(step=2), dict(num_blocks=5)], ids=str)
def test_models_that_differ_in_more_than_their_seed_are_refused(other):
    models = [_made_up("keel", seed, [1.0, 0.1], [2]) for seed in range(2)]
    with pytest.raises(ValueError, match="no seeds of one run.*Give work directories of one kind"):
        analysis.checks([*models, _made_up("keel", 2, [1.0, 0.1], [2]) | other])


def test_removable_counts_blocks_within_the_budget():
    model = _made_up("keel", 0, [0.0] * 4, [1.01, 1.04, 1.2])
    assert [analysis.removable(model, budget) for budget in (1.005, 1.03, 1.05, 1.3)] == [
        0,
        1,
        2,
        3,
    ]
