"""The house: imports go downward, every option is read, every config file is valid."""

import ast
import dataclasses
import importlib
import pathlib
import re

import pytest

from keel_jax import config
from keel_jax.parallel import mesh
from keel_jax.training import optim

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keel_jax"
# From the floor up; a room imports itself and rooms before it. planning and training are peers.
ROOMS = ("config", "runtime", "parallel", "data", "model", "planning", "training", "verbs")
PEERS = {"planning", "training"}


def _room(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "config"  # the package itself: its version
    return parts[1] if parts[1] in ROOMS else "verbs"


def _imports(path: pathlib.Path) -> set[str]:
    """Modules of ours that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("keel_jax", "experiments", "launch")}


def _module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.name))
def test_imports_go_downward(path):
    room = _room(_module(path))
    for name in _imports(path):
        assert name.startswith("keel_jax"), f"{path} imports {name}: experiments import us"
        other = _room(name)
        assert ROOMS.index(other) <= ROOMS.index(room), f"{path} ({room}) imports {name} ({other})"
        assert not (room != other and {room, other} == PEERS), f"{path} imports its peer {name}"


def test_a_room_above_would_be_noticed():
    assert ROOMS.index(_room("keel_jax.training.loop")) > ROOMS.index(_room("keel_jax.model.lm"))
    assert _room("keel_jax.train") == "verbs"


def _fields(cls, prefix=""):
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from _fields(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix, field.name


@pytest.mark.parametrize("key", sorted({prefix + name for prefix, name in _fields(config.Config)}))
def test_every_option_is_read(key):
    """An option counts as read if code outside the config's checks reads an attribute so named."""
    prefix, _, name = key.rpartition(".")
    if prefix.endswith("_multiplier"):
        # Read through getattr, by the group's name.
        path = {
            "embedding": ("embedding", "table"), "attention": ("block", "attention", "query"),
            "ffn": ("block", "ffn", "up"), "norm": ("block", "ffn", "inner_norm"),
            "residual": ("block", "ffn", "beta"), "output": ("output", "matrix"),
        }[name]
        keys = [type("Key", (), {"key": part})() for part in path]
        assert optim.group_of(keys) == name
        return
    if prefix == "mesh":
        assert name in mesh.AXES
        return
    derived = {"num_tokens": "num_steps", "profile_steps": "profile_range", "path": "paths",
               "peak_lr": "lane_settings", "seed": "lane_settings"}
    wanted = derived.get(name, name)
    sources = [p for p in PACKAGE.rglob("*.py") if p.name != "config.py"]
    pattern = re.compile(rf"\.{wanted}\b")
    assert any(pattern.search(path.read_text()) for path in sources), f"{key} is never read"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments/configs").glob("[a-z]*.py")), ids=lambda p: p.stem
)
def test_config_files_are_valid(path):
    module = importlib.import_module(f"experiments.configs.{path.stem}")
    assert module.__doc__
    cfg = module.get_config()
    checked = config.from_config_dict(cfg)
    assert config.from_dict(config.to_dict(checked)) == checked
