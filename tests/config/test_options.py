"""What an option's change changes: said of every option, and read by restarts and by digests."""

import dataclasses
import json
import pathlib

from keel_jax import config
from keel_jax.config import options
from tests import conftest

# Every option with its baseline: the value that stands for runs from before the option was there.
BASELINES = pathlib.Path(__file__).parent / "baselines.json"


def test_baselines_are_what_they_were():
    """A new option joins the file. A changed default keeps its old value as `baseline=`.

    Else finished points of sweeps, whose digests leave out options at their baseline, would be
    taken for points of the new default.
    """
    now = {
        name: field.metadata["baseline"] for name, field in options.fields(config.Config).items()
    }
    assert json.loads(json.dumps(now)) == json.loads(BASELINES.read_text())


def test_every_option_says_what_its_change_changes():
    for name, field in options.fields(config.Config).items():
        assert isinstance(options.change_of(field), options.Change), name


def test_options_without_consequence_are_no_part_of_results():
    cfg = conftest.tiny_config()
    other = dataclasses.replace(
        cfg,
        data=dataclasses.replace(cfg.data, num_threads=1, path="elsewhere"),
        runtime=config.RuntimeConfig(step_timeout_seconds=1.0),
        mesh=config.MeshConfig(fsdp=1, data=-1),
    )
    assert config.results_options(other) == config.results_options(cfg)


def test_options_that_change_results_are():
    cfg = conftest.tiny_config()
    for section, change in (
        ("model", dict(d_ffn=32)),
        ("optim", dict(peak_lr=5e-3)),
        ("train", dict(num_steps=9, num_tokens=0)),
        ("telemetry", dict(every_steps=3)),
    ):
        changed = dataclasses.replace(getattr(cfg, section), **change)
        other = dataclasses.replace(cfg, **{section: changed})
        assert config.results_options(other) != config.results_options(cfg), section


def test_a_new_option_at_its_baseline_changes_no_results():
    """What stood before the option was there: it is not among the options that count."""
    counted = config.results_options(conftest.tiny_config())
    assert "model.rope_theta" not in counted
    changed = conftest.tiny_config(model=dict(rope_theta=500_000.0))
    assert config.results_options(changed) == counted | {"model.rope_theta": 500_000.0}
