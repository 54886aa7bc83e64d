"""`experiments.run`: each sweep from end to end with runs of known tolerance, and its mistakes."""

import importlib
import os
import subprocess
import sys

import pytest

from experiments import registry, result_sets
from experiments.sweeps import point, results
from keel_jax.data import shards
from tests.experiments import fake_train

# Those that are a sweep and its analysis; the others have a module `experiment`.
SWEEPS = [name for name, module in registry.MODULES.items() if module.endswith(".analysis")]


def _run(name, tmp_path, token_dir, *flags):
    # A directory of its own, as sets of fewer tokens are made beside it.
    data = tmp_path / "data"
    if not data.exists():
        data.symlink_to(token_dir)
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.run",
            name,
            "--preset=micro",
            f"--data={data}",
            f"--runs={tmp_path / 'runs'}",
            f"--out={tmp_path / 'out'}",
            "--launcher=tests.experiments.fake_train",
            *flags,
        ],
        cwd=point.ROOT,
        capture_output=True,
        text=True,
        env=env,
    )


def _numbers(name, tmp_path, token_dir):
    done = _run(name, tmp_path, token_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    content = results.load(tmp_path / "out")
    assert content["experiment"] == name and content["numbers"]["missing"] == []
    figures = tmp_path / "out/figures"
    stems = {path.stem for path in figures.iterdir()}
    assert stems and len(list(figures.iterdir())) == 4 * len(stems)
    sizes = [path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert max(sizes) < 300_000
    return content["numbers"]


def test_lr_robustness_finds_the_tolerance_that_was_put_in(tmp_path, token_dir):
    numbers = _numbers("lr_robustness", tmp_path, token_dir)["L64"]
    ramp = numbers["ramp"]
    for topology, limit in fake_train.LIMITS.items():
        tolerated = ramp["topologies"][topology]
        # The trailing mean sees a spike within its window.
        lag = ramp["thresholds"]["window_steps"] * ramp["slope_per_step"]
        assert limit * 0.999 <= tolerated["median"] <= limit + lag, topology
        assert tolerated["num_never_diverged"] == 0
    assert ramp["ordering"]["verdict"] == "holds"
    medians = [ramp["topologies"][name]["median"] for name in ("keel", "pre_ln")]
    ratio = ramp["ordering"]["keel > pre_ln"]["ratio"]
    assert ratio == pytest.approx(medians[0] / medians[1], rel=0.05)
    assert numbers["fixed"]["largest_stable_rate_ordering"]["verdict"] == "holds"
    stable = {
        t: numbers["fixed"]["topologies"][t]["largest_stable_rate"] for t in fake_train.LIMITS
    }
    assert set(stable["keel"].values()) == {1.8e-2} and set(stable["post_ln"].values()) == {1.8e-3}
    assert len(ramp["under_other_thresholds"]) == 15


def test_alpha_compares_with_the_reference(tmp_path, token_dir):
    numbers = _numbers("alpha", tmp_path, token_dir)["losses"]
    assert len(numbers["series"]) == 13 and len(numbers["advantage_over_reference"]) == 12
    advantage = numbers["advantage_over_reference"]["keel-no_inner_norm"]
    # The stand-in for the driver lets it tolerate 5e-3 only.
    assert advantage["at 0.01"]["mean"] == pytest.approx(fake_train.END - fake_train.BEGIN)
    assert advantage["at 0.01"]["verdict"] == "reversed"
    assert numbers["advantage_over_reference"]["keel-4N"]["at_best"]["mean"] == 0


def test_depth_scaling_pairs_deep_with_wide(tmp_path, token_dir):
    numbers = _numbers("depth_scaling", tmp_path, token_dir)
    assert set(numbers["wide_over_deep_nats"]) == {
        f"{t} L16-d64 over L64-d32" for t in ("keel", "pre_ln")
    }
    assert len(numbers["keel_over_pre_ln_nats"]) == 4
    assert numbers["depth_gain_nats"]["keel"]["mean"] == 0
    assert numbers["series"]["keel-L64-d32"]["accuracy"]["mean"] > 0


def test_data_regime_has_runs_on_fewer_tokens(tmp_path, token_dir):
    numbers = _numbers("data_regime", tmp_path, token_dir)
    assert numbers["epochs"].pop("steps200-tokens2048") == 25.0
    epochs = [numbers["epochs"][f"steps{n}-tokensall"] for n in (50, 200)]
    assert epochs[1] == pytest.approx(4 * epochs[0], rel=1e-4)
    held = shards.open_set(token_dir).fingerprint[:8]
    assert (tmp_path / f"data_{held}_first2048/index.json").exists()
    assert numbers["keel_is_better_from_steps"] is None  # their runs are alike


# Each group is tried twice, so that these fail: the first group; the first four, all of one
# topology; all.
@pytest.mark.parametrize(
    "failures", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 999))]
)
@pytest.mark.parametrize("name", SWEEPS)
def test_what_is_missing_is_said_and_no_number(name, failures, tmp_path, token_dir):
    """Whether it is the first group or all of them."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/FAILURES").write_text(str(failures))
    done = _run(name, tmp_path, token_dir)
    assert done.returncode == 1 and "missing: " in done.stdout, done.stdout + done.stderr
    content = results.load(tmp_path / "out")
    states = [point["state"] for point in content["points"]]
    assert len(content["numbers"]["missing"]) == states.count("missing") > 0
    if name == "lr_robustness" and failures == 2:
        fixed = content["numbers"]["L64"]["fixed"]
        ordering = fixed["largest_stable_rate_ordering"]
        assert ordering["keel > pre_ln"]["verdict"] == ordering["verdict"] == "undecided"
        assert fixed["topologies"]["keel"]["incomplete_seeds"] == [0, 1, 2]
        assert fixed["topologies"]["pre_ln"]["incomplete_seeds"] == []


def test_a_dry_run_prints_commands_and_starts_nothing(tmp_path, token_dir):
    done = _run("alpha", tmp_path, token_dir, "--dry_run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "--workdir=" in line]
    assert len(lines) == 13 and all("--config.trials.peak_lr=" in line for line in lines)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", SWEEPS)
def test_every_point_of_every_preset_is_a_run(name):
    module = importlib.import_module(f"experiments.{name}.points")
    assert {"micro", "small", "paper"} <= set(module.PRESETS) <= set(result_sets.PRESETS)
    for make in module.PRESETS.values():
        preset = make()
        for members in point.group_by_series(preset.points).values():
            cfg = point.build_config(members[: preset.max_trials], "somewhere")
            assert cfg.num_trials == min(len(members), preset.max_trials)


def _run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=point.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_the_experiments():
    text = _run_command("--help").stdout
    for name in registry.MODULES:
        assert f"  {name} " in text and registry.summary(name) in text


@pytest.mark.parametrize("name", registry.MODULES)
def test_help_of_an_experiment_lists_its_flags(name):
    text = _run_command(name, "--help").stdout
    assert registry.summary(name) in text
    assert all(f"--{flag}:" in text for flag in ("preset", "out", "data"))
    has_workdirs = name in ("gradient_flow", "layer_redundancy")
    assert ("--workdirs" in text) == has_workdirs
    assert ("--shard" in text) == (name != "gradient_flow")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("alhpa", "--preset=micro"), "No experiment 'alhpa'. Did you mean alpha?"),
        ((), "Which experiment? Its name comes first"),
        (("--preset=micro", "alpha"), "Which experiment? Its name comes first"),
        (("alpha",), "--preset"),
        (("alpha", "--preset=mirco"), "<micro|small|paper>"),
        (("alpha", "--preset=micro", "--shrad=0/2"), "shard"),
        (("alpha", "--preset=micro", "extra"), "Unexpected argument 'extra'"),
        (("gradient_flow", "--preset=micro", "--shard=0/2"), "shard"),
    ],
    ids=str,
)
def test_a_mistake_is_one_paragraph(arguments, message):
    done = _run_command(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert message in done.stderr


def test_every_experiment_is_a_package_with_notes():
    packages = {path.parent.name for path in (point.ROOT / "experiments").glob("*/NOTES.md")}
    assert packages == set(registry.MODULES)
    for name in registry.MODULES:
        assert {"micro", "small", "paper"} <= set(registry.load(name).presets)
