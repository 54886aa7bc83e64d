"""The paper's configs: each one's step on the machine that its docstring names."""

import functools
import importlib
import pathlib
import re

import jax
import pytest

from keel_jax import config
from keel_jax.model import lm
from keel_jax.parallel import topology
from keel_jax.planning import compile_step, resolve
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

ROOT = pathlib.Path(__file__).parents[2]
_SHAPES = ("L64", "L128", "L512", "L1024")
PAPER = (
    *(f"{name}_{shape}" for name in ("keel", "pre_ln") for shape in _SHAPES),
    *(
        f"{prefix}{name}"
        for prefix in ("", "pre_ln_")
        for name in ("wide", "fineweb_edu_10b", "fineweb_edu_40b")
    ),
)


def _module(name: str):
    return importlib.import_module(f"experiments.configs.{name}")


def _config(name: str) -> config.Config:
    return config.from_config_dict(_module(name).get_config())


def _doc(name: str) -> str:
    doc = _module(name).__doc__
    assert doc is not None
    return doc


def _search(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} is not in:\n{text}"
    return match


def _topology(name: str) -> str:
    """The topology of the plan that the docstring gives the command of."""
    command = rf"keel_jax\.plan --config=experiments/configs/{name}\.py\s+--topology=(\S+)"
    return _search(command, _doc(name))[1]


@functools.cache
def _target(name: str) -> topology.Topology:
    return topology.parse(name)


@pytest.mark.parametrize("name", PAPER)
def test_the_step_of_every_paper_config(name):
    """Traced for the absent chips: sizes divide, the kernel takes them, shapes come back."""
    mesh = _target(_topology(name)).mesh(_config(name).mesh)
    cfg = resolve.resolve(_config(name), mesh)
    with jax.set_mesh(mesh):
        state = state_lib.abstract(cfg, mesh)
        after, sums = step_lib.jit_train_step(cfg, mesh).eval_shape(
            state, step_lib.abstract_batch(cfg, mesh)
        )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert sums["nats"].shape == ()


@pytest.mark.parametrize("name", PAPER)
def test_the_docstrings_table_is_the_configs(name):
    cfg, text = _config(name), _doc(name)
    m = cfg.model
    row = [m.num_blocks, m.num_sublayers, m.d_model, m.d_ffn, m.num_heads, m.num_kv_heads]
    if "x" in (batch := re.search(r"batch +peak LR\n.*?(\d+ x \d+)", text) or [""])[0]:
        assert batch[1] == f"{cfg.train.batch_size} x {cfg.train.seq_len}"
    pattern = r"\s+".join(map(str, row)) + r"\b.*\s(\S+)\n"
    assert float(_search(pattern, text)[1]) == cfg.optim.peak_lr
    assert "Expected" in text or "average" in text
    assert _search(r"The plan's verdict: fits v\w+:[\dx]+, [\d.]+ of [\d.]+ GiB a chip", text)
    assert m.topology == ("pre_ln" if name.startswith("pre_ln") else "keel")


@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("pre_ln")])
def test_twins_differ_in_the_rule_and_the_rate_alone(name):
    twin = f"pre_ln_{name.removeprefix('keel_')}"
    allowed = {"model.topology", "optim.peak_lr"}
    assert set(config.differences(_config(name), _config(twin))) <= allowed
    assert set(PAPER) >= {name, twin}


def test_wide_has_the_parameters_of_deep():
    deep, wide = (_config(name).model for name in ("keel_L512", "wide"))
    blocks = [lm.count_params(m) - 2 * m.vocab_size * m.d_model for m in (deep, wide)]
    assert blocks[1] == pytest.approx(blocks[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keel_L64", "wide"])
def test_it_fits(name):
    assert compile_step.plan_step(_config(name), _target(_topology(name))).fits


def test_fine_tuning_has_the_papers_grid_and_differs_in_its_topology_only():
    """Rates {1, 2, 3}e-6, each for 1 to 3 epochs."""
    keel, pre_ln = _config("sft_keel_L512"), _config("sft_pre_ln_L512")
    trials = set(zip(keel.trials.peak_lr, keel.trials.num_epochs, strict=True))
    assert trials == {(rate * 1e-6, epochs) for rate in (1, 2, 3) for epochs in (1.0, 2.0, 3.0)}
    assert set(config.differences(keel, pre_ln)) == {"model.topology"}
    base = _config("keel_L512")
    assert keel.model == base.model and keel.train.seq_len == base.train.seq_len
