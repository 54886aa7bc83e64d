"""The entry point: its JSON, its exit codes, its search, and what it refuses."""

import ast
import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from keel_jax import config, plan
from keel_jax.planning import cost_model, search
from keel_jax.runtime import exit_codes
from tests import conftest

ROOT = pathlib.Path(__file__).parents[1]


def _run(*flags, timeout=300):
    env = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    return subprocess.run(
        [sys.executable, "-m", "keel_jax.plan", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )


_TINY = (
    "--config=experiments/configs/tiny.py",
    "--config.model.vocab_size=256",
    "--config.train.seq_len=32",
    "--config.model.num_blocks=2",
)


def _is_plan(value):
    hbm = value["hbm_bytes"]
    assert {"limit", "arguments", "temporaries", "total"} <= set(hbm)
    assert value["flops"]["executed"] >= 0.8 * value["flops"]["model"] > 0
    for c in value["collectives"]:
        assert {"kind", "axis", "count", "bytes", "network"} <= set(c)
    assert value["compile_seconds"] > 0
    assert {"mesh", "segments", "recompute"} <= set(value["plan"])
    assert value["plan"]["recompute"]["expected_temporaries_bytes"] > 0


def test_a_plan_of_simulated_devices(tmp_path):
    done = _run(*_TINY, "--topology=cpu:4", f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == exit_codes.DONE, done.stderr
    value = json.loads((tmp_path / "plan.json").read_text())
    _is_plan(value)
    assert value["fits"] and value["plan"]["mesh"] == {"fsdp": 4}
    assert value["estimate"] is None and value["hbm_bytes"]["limit"] is None
    assert "Traceback" not in done.stderr and "fsdp 4" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v9:2x2", *_TINY), "No topology 'v9:2x2'"),
        (("--topology=cpu:4", "--config=experiments/configs/tiny.py"), "--config.model.vocab_size"),
        (("--topology=cpu:4", *_TINY, "--config.mesh.fsdp=3"), "mesh.fsdp=3"),
        (("--topology=cpu:3", *_TINY), "is not a multiple of the 3"),
    ],
)
def test_what_is_refused(flags, message):
    done = _run(*flags)
    assert done.returncode == exit_codes.ERROR
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_plan_of_a_tpu_and_one_that_is_too_large(tmp_path):
    """One compiler run each: a small step, and one whose state alone exceeds a v5e."""
    for name, flags, code in (
        ("fits", _TINY, exit_codes.DONE),
        # 2 blocks of FFNs so wide that 4 chips cannot hold their parameters.
        ("not", (*_TINY, "--config.model.d_ffn=60000000"), exit_codes.DOES_NOT_FIT),
    ):
        done = _run(*flags, "--topology=v5e:2x2", f"--json={tmp_path / name}")
        assert done.returncode == code, done.stderr
        assert done.stderr.strip() in ("", "compiling for v5e:2x2")
    value = json.loads((tmp_path / "fits").read_text())
    _is_plan(value)
    assert 0 < value["estimate"]["mfu"] < 1 and value["hbm_bytes"]["limit"] == 15.75 * 2**30
    assert not value["flops"]["unknown_loops"]
    value = json.loads((tmp_path / "not").read_text())
    hbm = value["hbm_bytes"]
    assert not value["fits"] and hbm["missing"] == hbm["total"] - hbm["limit"] > 0
    assert hbm["arguments"] + hbm["temporaries"] == hbm["total"]
    assert "devices" in value["advice"] and "does not fit" in done.stdout


def test_a_search_finds_a_front_to_paste():
    """Of meshes, micro-batches, and plans of recomputation."""
    cfg = conftest.tiny_config(
        model=dict(num_blocks=8, recompute=dict(plan="auto")), train=dict(batch_size=4)
    )
    told = []
    found = plan.find(cfg, "cpu:2", 1, 2, told.append)
    assert len(told) == 2 and 1 <= len(found) <= 2
    costs, sizes = [r.cost for r in found], [r.total_bytes for r in found]
    assert costs == sorted(costs) and sizes == sorted(sizes, reverse=True)
    assert all("--config.model.recompute.plan=" in one for one in told)
    for result in found:
        again = config.default()
        again.update(config.to_dict(cfg))
        for flag in search.overrides(cfg, result.cfg):
            name, _, text = flag.removeprefix("--config.").partition("=")
            *sections, option = name.split(".")
            section = functools.reduce(lambda raw, key: raw[key], sections, again)
            kind = type(section[option])
            section[option] = ast.literal_eval(text) if kind in (bool, tuple) else kind(text)
        # The kernel follows from the mesh: no flag says it.
        planned = config.from_config_dict(again)
        model = dataclasses.replace(planned.model, attention=result.cfg.model.attention)
        assert dataclasses.replace(planned, model=model) == result.cfg


def test_candidates_are_valid_and_all_different():
    cfg = conftest.tiny_config(model=dict(num_blocks=2), train=dict(batch_size=8))
    found = list(search.candidates(cfg, 8, 2))
    assert len(set(found)) == len(found) > 20
    for candidate in found:
        sizes = candidate.mesh.ici_sizes
        assert math.prod(sizes.values()) == 4
        assert candidate.mesh.dcn_data == 2


def _fake(cost, size, fits=True):
    class Fake:
        total_bytes = size

    fake = Fake()
    fake.cost, fake.fits = cost, fits
    return fake


def test_the_front_drops_what_another_plan_beats():
    fast, small, beaten = _fake(1, 10), _fake(3, 2), _fake(2, 11)
    assert search.front([small, beaten, fast, _fake(0, 1, False)]) == [fast, small]
    over, further = _fake(1, 10, False), _fake(1, 12, False)
    assert search.front([further, over]) == [over]


def test_advice_is_segments_or_micro_batches_or_more_devices():
    cfg = conftest.tiny_config(
        model=dict(recompute=dict(plan="block"), num_blocks=64, attention="reference"),
        train=dict(batch_size=64, seq_len=64),
    )
    sizes = dict.fromkeys(config.MESH_AXES, 1) | {"fsdp": 8}
    shards = cost_model.Shards(1000, 2000, 100, ())

    def takes(cfg):
        return cost_model.temporaries(cfg, sizes, 1000).total

    def advice(cfg, total, limit):
        return cost_model.advice(cfg, sizes, shards, total, limit)

    segments = config.RecomputeConfig(plan="segments")
    deep = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, recompute=segments))
    saved = takes(cfg) - takes(deep)
    assert "recompute.plan=segments" in advice(cfg, 3100 + saved, 3100)
    # In segments already: half of the rows at a time.
    halved = dataclasses.replace(cfg.train, accumulation_steps=2)
    total = 3100 + takes(deep)
    limit = 3100 + takes(dataclasses.replace(deep, train=halved))
    assert "accumulation_steps=2 " in advice(deep, total, limit)
    assert "about 16 devices" in advice(cfg, 1e12, 0.5e12)
