"""Points: the flags that make their run, and what makes a finished one stale."""

import dataclasses
import subprocess
import sys

import pytest

from experiments.sweeps import point
from keel_jax import config
from keel_jax.config import options
from keel_jax.config import run as config_run
from keel_jax.runtime import files
from tests import conftest
from tests.experiments.sweeps import points_of_tiny


def test_flags_make_the_same_run_as_the_point(tmp_path, token_dir):
    """What the driver reads from the flags is what the record's digest is made of."""
    points = point.grid(
        "a",
        points_of_tiny.TINY,
        {
            "model.alpha": 3.0,
            "model.qk_norm": True,
            "model.topology": "keel_no_inner_norm",
        },
        (1e-3, 2.0 / 3),
        (0, 7),
    )
    script = (
        "import sys\nfrom absl import app, flags\nfrom ml_collections import config_flags\n"
        "from keel_jax import config\nimport json\n"
        "C = config_flags.DEFINE_config_file('config')\n"
        "flags.DEFINE_string('workdir', None, '')\n"
        "app.run(lambda _: print(json.dumps(config.to_dict(config.from_config_dict(C.value)))))\n"
    )
    flags = point.driver_flags(points, str(token_dir), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=point.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "config.json").write_text(done.stdout)
    assert files.read_json(tmp_path / "config.json") == config.to_dict(
        point.build_config(points, str(token_dir))
    )


@pytest.mark.parametrize(
    "changed",
    [
        dict(model=dict(d_model=32)),
        dict(optim=dict(peak_lr=2e-2)),
        dict(train=dict(num_steps=7)),
        dict(data=dict(mask_documents=False)),
        dict(trials=dict(seed=(0, 1))),
        dict(seed=1),
    ],
    ids=str,
)
def test_what_changes_a_runs_results_makes_it_stale(changed):
    before = point.digest(conftest.tiny_config(), "tokens")
    assert point.digest(conftest.tiny_config(**changed), "tokens") != before


def test_other_data_make_a_run_stale():
    cfg = conftest.tiny_config()
    assert point.digest(cfg, "tokens") != point.digest(cfg, "other tokens")


@pytest.mark.parametrize(
    "changed",
    [
        dict(data=dict(num_threads=1)),
        dict(data=dict(path="elsewhere")),
        dict(data=dict(verify_checksums=False)),
        dict(train=dict(checkpoint_every_steps=3, accumulation_steps=2)),
        dict(model=dict(recompute=dict(plan="block"))),
        dict(mesh=dict(tensor=2)),
        dict(runtime=dict(step_timeout_seconds=5.0)),
    ],
    ids=str,
)
def test_what_changes_no_results_leaves_a_finished_run_finished(changed):
    before = point.digest(conftest.tiny_config(), "tokens")
    assert point.digest(conftest.tiny_config(**changed), "tokens") == before


def test_a_new_option_with_its_default_leaves_a_finished_run_finished(monkeypatch):
    """The framework gains an option that changes results: at its default it is in no digest."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NewerConfig(config.Config):
        new_option: float = options.option(0.5, options.Change.RESULTS)

    cfg = conftest.tiny_config()
    before = point.digest(cfg, "tokens")
    values = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
    monkeypatch.setattr(config_run, "Config", NewerConfig)
    newer = NewerConfig(**values)
    assert "new_option" in config.to_dict(newer)
    assert point.digest(newer, "tokens") == before
    changed = dataclasses.replace(newer, new_option=0.25)
    assert point.digest(changed, "tokens") != before
