"""gradient_flow: closed forms, the measurement against derivatives by hand, the run."""

import jax
import numpy as np
import pytest

from experiments.gradient_flow import analysis, measure, points, run, theory, trained
from experiments.sweeps import results
from keel_jax import config, train
from keel_jax.model import lm, residual
from tests import conftest

TINY = points.PRESETS["tiny"]


def _gain(name: str, num_blocks: int) -> float:
    """The closed form's gain from block 0's output to the top."""
    return analysis.theory_gain(name, num_blocks, TINY)[2]


@pytest.mark.parametrize(("num_sublayers", "paper"), [(64, 0.992), (1024, 0.9995)])
def test_the_papers_figures_for_keel(num_sublayers, paper):
    """PAPER §3, over all L sub-layers; block 0 has an alpha of its own, so two are missing here."""
    factor = num_sublayers / np.hypot(num_sublayers, 1)
    assert _gain("keel", num_sublayers // 2) == pytest.approx(factor ** (num_sublayers - 2))
    assert factor**num_sublayers == pytest.approx(paper, abs=5e-4)


def test_the_closed_forms_of_the_others():
    assert _gain("post_ln", 32) == pytest.approx(2.0**-31)
    assert _gain("pre_ln", 32) == 1
    assert _gain("keel, alpha = sqrt(L)", 512) == pytest.approx(np.exp(-0.5), rel=0.01)
    assert _gain("keel, alpha = 10", 512) == pytest.approx(0.006, rel=0.05)
    assert _gain("deepnorm", 256) == pytest.approx(1.6e-5, rel=0.05)


def test_factors_from_sizes_are_those_of_unit_branches_where_branches_are_units():
    topology = residual.topology(points.model("keel", 4, TINY))
    ones_N2 = np.ones((4, 2))
    np.testing.assert_allclose(
        theory.from_sizes(topology, ones_N2, ones_N2, ones_N2), theory.unit_branches(topology)
    )
    small = theory.gain(theory.from_sizes(topology, ones_N2, 0.1 * ones_N2, ones_N2))
    assert theory.gain(theory.unit_branches(topology))[2] < small[2] < 1


def test_gains_that_all_grow_alike_leave_the_path_as_it_is():
    """alpha is that many times larger beside F, and each norm divides by as much."""
    topology = residual.topology(points.model("keel", 4, TINY))
    ones_N2 = np.ones((4, 2))
    factors = theory.from_sizes(topology, 2 * ones_N2, 2 * ones_N2, 2 * ones_N2)
    np.testing.assert_allclose(factors, theory.unit_branches(topology))


@pytest.fixture(scope="module")
def post_ln():
    """A Post-LN model, its program and what it reads."""
    model = points.model("post_ln", 4, TINY)
    shape = (TINY.batch_size, TINY.seq_len)
    flow = measure.compile_flow(model, *shape)
    params = measure.compile_init(model)(jax.random.key(0))
    return model, flow, params, measure.random_tokens(shape, TINY.vocab_size, 0)


def test_the_whole_gain_is_the_gradient_at_the_embedding(post_ln):
    """At sub-layer 0 the stream is the embedding's rows: their gradient, by plain jax.grad."""
    model, flow, params, tokens_BT = post_ln
    distinct = np.arange(tokens_BT.size, dtype=np.int32).reshape(tokens_BT.shape)
    v_BTD = measure.direction(distinct.shape, model.d_model, 0)

    def objective(table):
        tree = {**params, "embedding": {"table": table}}
        x_BTD = lm.LanguageModel(model).apply({"params": tree}, distinct, method="hidden")
        return (measure.tangent(v_BTD, jax.lax.stop_gradient(x_BTD)) * x_BTD).sum()

    rows = np.asarray(jax.jit(jax.grad(objective))(params["embedding"]["table"]))[: distinct.size]
    found = measure.look(flow, params, distinct, model, 0)
    assert found["gain"][0] == pytest.approx(np.sqrt(np.mean(rows**2)), rel=1e-4)
    assert found["path_gain"][0] != pytest.approx(found["gain"][0], rel=0.1)


def test_unit_branches_are_units_and_the_path_is_the_theorys(post_ln):
    model, flow, params, tokens_BT = post_ln
    unit = measure.with_unit_branches(flow, params, tokens_BT, model, 0)
    found = measure.look(flow, unit, tokens_BT, model, 0)
    np.testing.assert_allclose(found["branch_rms"], found["stream_rms"], rtol=0.01)
    want = np.log(_gain("post_ln", 4))
    # Of 16 dimensions branches are not at right angles to their streams; each token has its sizes.
    assert np.log(found["path_gain"][2]) == pytest.approx(want, rel=0.4)
    assert np.log(found["predicted_path_gain"][2]) == pytest.approx(want, rel=0.02)


def test_v_has_no_part_along_the_stream():
    rng = np.random.default_rng(0)
    v, x = (rng.standard_normal((2, 3, 16)).astype(np.float32) for _ in range(2))
    found = np.asarray(measure.tangent(v, x))
    assert np.abs((found * x).sum(-1)).max() < 1e-4
    np.testing.assert_allclose(np.sqrt((found**2).mean(-1)), 1, rtol=1e-5)


def test_every_topology_is_looked_at():
    cases = points.cases(points.PRESETS["micro"])
    assert {name for name, _ in cases} == set(points.NAMES) >= set(config.TOPOLOGIES)
    assert len(cases) == len(set(cases)) and ("keel", 512) in cases
    assert max(n for name, n in cases if name == "post_ln") < 63  # 2^-63 squared is no float32


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

    def told(shift):
        found = [
            point(name, n, "unit", _gain(name, n) ** shift)
            for name, n in (
                ("keel", 32),
                ("keel, alpha = sqrt(L)", 32),
                ("keel, alpha = 10", 512),
                ("deepnorm", 256),
                ("post_ln", 32),
            )
        ]
        found += [point("keel", n, "initial", 1.0, n ** -float(shift)) for n in (32, 256, 512)]
        found += [
            point("pre_ln", 32, "initial", float(shift)),
            point("post_ln", 32, "initial", 1.0 if shift == 1 else 1e-3),
        ]
        return analysis.checks(analysis.numbers(found, TINY))

    holding, failing = told(1), told(2)
    assert len(holding) == 9 and all(check["holds"] for check in holding.values())
    # Keel's own theory is near 1 at any power.
    assert [key for key, check in failing.items() if check["holds"]] == ["unit path, keel"]


def test_trained_models_of_several_rates_are_no_seeds():
    kind = {"name": "keel", "num_blocks": 2, "kind": "trained", "step": 6}
    with pytest.raises(ValueError, match="no seeds of one run.*0.01, 0.03"):
        analysis.numbers(
            [kind | {"seed": n, "peak_lr": lr} for n, lr in enumerate((1e-2, 3e-2))], TINY
        )


def test_the_run_writes_numbers_and_figures(monkeypatch, tmp_path):
    """On the tiny preset, of few topologies."""
    names = ("keel", "pre_ln")
    monkeypatch.setattr(points, "OVER_DEPTH", names)
    monkeypatch.setattr(points, "NAMES", names)
    told = run.run("tiny", tmp_path, [], None)
    found = results.read(tmp_path)
    assert found["experiment"] == "gradient_flow" and found["numbers"]["unit"] == told["unit"]
    assert set(told["initial"]) == set(names) and set(told["unit"]) == {"keel"}
    at = told["unit"]["keel"]["8"]["path_gain_from_block_0"]
    assert 0.5 < at["low"] <= at["median"] <= at["high"] < 1.5 and at["num_seeds"] == 2
    for stem in ("path_over_depth", "path_profile", "forward", "backward", "branch_gradients"):
        assert {path.suffix for path in (tmp_path / "figures").glob(f"{stem}.*")} == {
            ".png",
            ".svg",
            ".json",
        }


@pytest.mark.slow
def test_a_trained_model_is_looked_at_before_and_after(token_dir, cache_dir, tmp_path):
    for topology in ("pre_ln", "keel"):  # with a final norm, and without
        cfg = conftest.tiny_config(
            model=dict(vocab_size=0, topology=topology),
            data=dict(path=str(token_dir)),
            runtime=dict(compilation_cache_dir=cache_dir),
            trials=dict(seed=(3, 4)),
        )
        assert train.train(cfg, tmp_path / topology) == 0
    found = [
        point
        for topology in ("pre_ln", "keel")
        for point in trained.points(tmp_path / topology / "trials/001")
    ]
    assert [(p["name"], p["step"], p["seed"]) for p in found] == [
        ("pre_ln", 0, 4),
        ("pre_ln", 6, 4),
        ("keel", 0, 4),
        ("keel", 6, 4),
    ]
    for before, after in (found[:2], found[2:]):
        assert np.any(before["gain"] != after["gain"])
    assert found[1]["path_gain"][0] == pytest.approx(1, abs=1e-5)
