"""Options under the names that they had once: said to people, translated in saved configs."""

import subprocess
import sys

import ml_collections
import pytest

from keel_jax import config
from keel_jax.config import options, renamed
from tests import conftest

_OLD = {
    "lanes": {"peak_lr": [1e-3, 1e-2], "seed": []},
    "mesh": {"lane": 2, "dcn_lane": 1, "fsdp": -1},
    "model": {"recompute": {"plan": "block", "save": "products", "evaluations": 1}},
}


def test_a_saved_config_is_translated():
    values = config.to_dict(conftest.tiny_config())
    del values["trials"], values["mesh"]
    values["model"]["recompute"] = {"plan": "block", "save": "products", "evaluations": 1}
    old = values | {"lanes": _OLD["lanes"], "mesh": _OLD["mesh"]}
    cfg = config.from_dict(old)
    assert cfg.trials.peak_lr == (1e-3, 1e-2) and cfg.mesh.trial == 2
    assert cfg.model.recompute.save == "mlp"
    assert old["lanes"] == _OLD["lanes"], "the caller's mapping stays as it was"
    assert config.from_dict(config.to_dict(cfg)) == cfg


def test_old_names_are_found_with_what_they_are_now():
    assert renamed.names_in(_OLD) == {
        "lanes.peak_lr": "trials.peak_lr",
        "lanes.seed": "trials.seed",
        "mesh.lane": "mesh.trial",
        "mesh.dcn_lane": "mesh.dcn_trial",
        "model.recompute.evaluations": "model.recompute.fixed_point_iterations",
        "model.recompute.save=products": "model.recompute.save=mlp",
    }
    assert renamed.names_in(config.to_dict(config.Config())) == {}


def test_every_new_name_is_an_option():
    names = options.fields(config.Config)
    for old in renamed.names_in(_OLD):
        new = renamed.option(old.split("=")[0]) or old.split("=")[0]
        assert new in names, old


@pytest.mark.parametrize("old", ["lanes.peak_lr", "mesh.lane"])
def test_a_raw_config_with_an_old_name_is_refused(old):
    raw = config.default()
    raw.train.num_steps = 3
    section, name = old.split(".")
    raw.unlock()
    raw[section] = ml_collections.ConfigDict({**raw.get(section, {}), name: 2})
    with pytest.raises(ValueError, match=rf"{old} is called {renamed.option(old)} now"):
        config.from_config_dict(raw)


def test_a_flag_with_an_old_name_is_answered_with_the_new_one():
    script = "from keel_jax.runtime import cli\nF = cli.define_config()\ncli.run(lambda _: 0)\n"
    flags = ["--config=experiments/configs/tiny.py", "--config.lanes.peak_lr=(1e-3,)"]
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "error: --config.lanes.peak_lr is called --config.trials.peak_lr now." in done.stderr
