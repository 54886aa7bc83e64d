"""layer_redundancy: losses without parts, by hand; greedy; verdicts on made-up models."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.layer_redundancy import analysis, points, removal, run
from experiments.sweeps import outcome, point, results
from keel_jax import evaluate, train
from tests import conftest

N = 3


@pytest.fixture(scope="module")
def run_dir(token_dir, cache_dir, tmp_path_factory):
    """Two trials of Keel, briefly trained."""
    workdir = tmp_path_factory.mktemp("run")
    cfg = conftest.tiny_config(
        model=dict(vocab_size=0, num_blocks=N, init_std=0.2),
        data=dict(path=str(token_dir)),
        runtime=dict(compilation_cache_dir=cache_dir),
        trials=dict(seed=(3, 4)),
    )
    assert train.train(cfg, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def model(run_dir):
    return removal.load(run_dir / "trials/000", num_sequences=8)


def test_with_nothing_removed_it_is_the_models_own_loss(model, run_dir):
    """On the whole validation split, `evaluate` agrees."""
    targets = int(evaluate.evaluate(run_dir / "trials/000")["num_tokens"])
    everything = removal.load(run_dir / "trials/000", num_sequences=-(-targets // 16))
    want = evaluate.evaluate(run_dir / "trials/000")["loss_nats_per_token"]
    assert everything.loss(np.zeros((N, 2), bool)) == pytest.approx(want, rel=1e-5)
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
        return dataclasses.replace(model, params=params).loss(np.zeros((N, 2), bool))

    ends = ("attention", "out"), ("ffn", "down")
    by_sublayer = removal.without_each_sublayer(model)
    want = [zeroed(block, end) for block in range(N) for end in ends]
    np.testing.assert_allclose(by_sublayer, want, rtol=1e-5)
    by_block = removal.without_each_block(model)
    np.testing.assert_allclose(by_block, [zeroed(block, *ends) for block in range(N)], rtol=1e-5)
    assert len(set(np.round(by_sublayer, 7))) == 2 * N  # all different: none is confused


def test_one_program_serves_all_masks_and_all_seeds(model, run_dir):
    program = removal.program(model.cfg)
    removal.without_each_block(model)
    before = program._cache_size()
    other = removal.load(run_dir / "trials/001", num_sequences=8)
    removal.without_each_sublayer(other, removal.IDENTITY)
    assert removal.program(other.cfg) is program and program._cache_size() == before


def test_identity_and_branch_differ_by_a_gain_in_keel_only_where_there_is_a_norm(model):
    """Block 0's attention has no outer norm; its FFN's lifts the embedding to RMS 1."""
    branch, identity = (removal.without_each_sublayer(model, kind) for kind in removal.KINDS)
    assert identity[0] == pytest.approx(branch[0], rel=1e-6)
    assert abs(identity[1] - branch[1]) > 1e-3


def test_no_identity_where_sublayers_keep_books(model):
    attn_res = dataclasses.replace(model.cfg.model, topology="attention_residuals", alpha=None)
    other = dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, model=attn_res))
    with pytest.raises(ValueError, match="remove branches"):
        removal.without_each_sublayer(other, removal.IDENTITY)


class _Additive:
    """A model where each block's removal costs its own, and 1 more for each pair of neighbours."""

    def __init__(self, costs):
        self.costs, self.num_blocks, self.calls = np.array(costs), len(costs), 0

    def loss(self, removed_N2, kind=removal.BRANCH):
        del kind
        self.calls += 1
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
    found = []
    for seed in range(3):
        jitter = 0.001 * seed
        found.append(_made_up("keel", seed, [2, 1, *(rising + keel_shallow + jitter)], keel_losses))
        found.append(_made_up("pre_ln", seed, [2, 1, *(rising + jitter)], [1.01, 1.05, 1.09, 2]))
    return found


def test_the_verdicts_follow_the_models():
    told = analysis.numbers(_world(0.3, [1.02, 2]))["checks"]
    assert len(told) == 6 and all(check["holds"] for check in told.values())
    told = analysis.numbers(_world(-0.05, [1.01, 1.02, 1.03, 1.04, 2]))["checks"]
    assert told["shallow blocks, keel above pre_ln"]["verdict"] == "reversed"
    assert told["removable blocks, pre_ln above keel"]["verdict"] == "reversed"
    flat = [_made_up("keel", seed, [0.1] * 4 + [1.0], [2]) for seed in range(3)]
    told = analysis.checks(flat)
    assert not told["first blocks, keel"]["holds"] and len(told) == 2


def test_pairs_are_of_the_same_seed():
    """Where each lacks another one, one pair is left, which decides nothing."""
    found = _world(0.3, [1.02, 2])
    lacking = [m for m in found if (m["topology"], m["seed"]) not in {("keel", 0), ("pre_ln", 2)}]
    pair = analysis.checks(lacking)["shallow blocks, keel above pre_ln"]
    assert pair["num_seeds"] == 1 and pair["verdict"] == "undecided"
    assert analysis.checks(found)["shallow blocks, keel above pre_ln"]["num_seeds"] == 3


@pytest.mark.parametrize("other", [dict(peak_lr=3e-2), dict(step=2), dict(num_blocks=5)], ids=str)
def test_models_that_differ_in_more_than_their_seed_are_refused(other):
    found = [_made_up("keel", seed, [1.0, 0.1], [2]) for seed in range(2)]
    with pytest.raises(ValueError, match="no seeds of one run.*Give work directories of one kind"):
        analysis.checks([*found, _made_up("keel", 2, [1.0, 0.1], [2]) | other])


def test_removable_counts_blocks_within_the_budget():
    model = _made_up("keel", 0, [0.0] * 4, [1.01, 1.04, 1.2])
    assert [analysis.removable(model, budget) for budget in (1.005, 1.03, 1.05, 1.3)] == [
        0,
        1,
        2,
        3,
    ]


def test_presets_name_files_and_trials():
    for name, preset in points.PRESETS.items():
        made = preset().points
        assert {p.series.split("-")[0] for p in made} == set(points.TOPOLOGIES), name
        assert name in points.SIZES


@pytest.fixture
def trials(run_dir, monkeypatch):
    """The runs to take apart, with the flags and sizes that `run` reads."""

    class Flags:
        data, preset = None, "micro"

    monkeypatch.setattr(run.flags, "FLAGS", Flags)
    monkeypatch.setitem(points.SIZES, "micro", points.Sizes(num_sequences=4, num_candidates=1))
    return [run_dir / "trials" / trial for trial in ("000", "001")]


def test_of_a_sweep_what_came_to_its_end_is_taken_apart(trials, token_dir, tmp_path):
    """A diverged model is named, and not measured."""
    at = [
        point.Point("keel-L6", "experiments/configs/micro.py", {}, 1e-2, seed) for seed in (3, 4, 5)
    ]
    states = (outcome.DONE, outcome.DONE, outcome.DIVERGED)
    outcomes = [
        outcome.Outcome(p, state, workdir)
        for p, state, workdir in zip(at, states, [*trials, trials[0]], strict=True)
    ]
    told = run.analyse(outcomes, tmp_path, str(token_dir))
    assert told["keel"]["ppl"]["num_seeds"] == 2
    assert told["diverged"] == ["keel-L6_lr0.01_seed5"]


def test_results_of_given_runs_are_written(trials, tmp_path, capsys):
    assert run.analyse_workdirs(trials, "micro", tmp_path) == 0
    found = results.read(tmp_path)
    assert [point["seed"] for point in found["points"]] == [3, 4]
    assert len(found["numbers"]["keel"]["delta_ppl_sublayer"]) == 2 * N
    stems = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert stems == {"block", "sublayer", "rotation", "greedy"}
    assert "results.json" in capsys.readouterr().out
