"""The README's commands are run, as they stand, in a fresh directory."""

import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from keel_jax.runtime import files
from keel_jax.training import logs

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# `make` is what runs this test; the other two need a shell of one's own and a browser.
NOT_RUN = ("make", "source", "tensorboard")


def commands() -> list[str]:
    """Every line of the README's bash blocks that is a command."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_every_command_and_flag_in_the_readme_exists():
    """Quick: each command's module is there, and its --help knows its flags."""
    flags: dict[tuple[str, ...], set[str]] = {}
    for line in commands():
        words = shlex.split(line)
        if words[0] in NOT_RUN or not words[0].startswith("python"):
            assert words[0] in NOT_RUN, line
            continue
        # `experiments.run` has a positional argument, whose flags its --help lists.
        command = tuple(itertools.takewhile(lambda word: not word.startswith("--"), words[2:]))
        names = {word.split("=")[0].lstrip("-") for word in words[2 + len(command) :]}
        flags.setdefault(command, set()).update(names)
    assert len(flags) >= 4
    for command, names in flags.items():
        text = subprocess.run(
            [sys.executable, "-m", *command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        for name in names:
            assert f"--{name.split('.')[0]}" in text.replace("--[no]", "--"), (command, name)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_readme_works(tmp_path):
    for name in ("experiments", "keel_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    for line in commands():
        words = shlex.split(line)
        if words[0] in NOT_RUN:
            continue
        words[0] = sys.executable
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=900
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    # 1024 sub-layers took real steps, and the loss fell.
    deep = tmp_path / "runs/deep"
    assert files.read_json(deep / "status.json")["num_sublayers"] == 1024
    losses = [row["train/loss_nats_per_token"] for row in logs.read(deep) if "tokens" in row]
    assert losses[-1] < losses[0] - 0.5, losses
