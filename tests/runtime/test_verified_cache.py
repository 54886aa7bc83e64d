"""Entries of the compilation cache: what is not as it was written is never loaded."""

import pathlib
import random
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = """
import sys
import jax
import jax.numpy as jnp
from keel_jax.runtime import compilation

compilation.enable_cache(sys.argv[1])
with compilation.Counter() as counter:
    result = jax.jit(lambda x: jnp.sin(x).sum() * 3)(jnp.arange(7.0))
print(float(result), counter.hits, counter.misses)
"""


def _run(directory):
    """What the program prints: its result, hits and misses; and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    result, hits, misses = done.stdout.split()
    return result, int(hits), int(misses), done.stderr


def _flip(path):
    content = bytearray(path.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    path.write_bytes(content)


_DAMAGES = {
    "flipped": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "emptied": lambda path: path.write_bytes(b""),
    "of another program": lambda path: path.write_bytes(
        next(p for p in path.parent.glob("*-cache") if p != path).read_bytes()
    ),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_entry_is_named_deleted_and_compiled_again(damage, tmp_path):
    result, _, num_programs, _ = _run(tmp_path)
    entries = sorted(tmp_path.glob("*-cache"))
    assert len(entries) == num_programs > 1
    damaged = next(path for path in entries if "lambda" in path.name)
    _DAMAGES[damage](damaged)
    again, hits, misses, stderr = _run(tmp_path)
    assert (again, hits, misses) == (result, num_programs - 1, 1)
    [warning] = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert f"{damaged} is damaged" in warning and "Traceback" not in stderr
    assert _run(tmp_path) == (result, num_programs, 0, "")


def test_entries_without_a_digest_are_not_loaded_and_not_touched(tmp_path):
    """JAX's own, in a directory that other programs use, too."""
    _run(tmp_path)
    for path in tmp_path.glob("*-cache"):
        path.rename(path.with_name(path.name.replace("-sha256-cache", "-cache")))
    foreign = {path: path.read_bytes() for path in tmp_path.glob("*-cache")}
    _, hits, misses, stderr = _run(tmp_path)
    assert (hits, misses) == (0, len(foreign)) and not stderr
    assert {path: path.read_bytes() for path in foreign} == foreign
