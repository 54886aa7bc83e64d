"""The compilation cache: a second process compiles nothing, and the counter says so."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = """
import json
import sys
import jax
import jax.numpy as jnp
from keel_jax.runtime import compilation

directory = compilation.enable_cache(sys.argv[1])
with compilation.Counter() as counter:
    jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) * 3)(jnp.arange(7.0)))
jax.block_until_ready(jax.jit(lambda x: jnp.cos(x) * 5)(jnp.arange(9.0)))
print(json.dumps([directory, counter.hits, counter.misses]))
"""


def _run(directory, before="", **env) -> tuple[str, int, int]:
    """The directory in use, and the programs loaded and compiled in the counter's `with`."""
    done = _process(directory, before, **env)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


def _process(directory, before="", **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", before + _SCRIPT, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "", "JAX_PLATFORMS": "cpu", **env},
    )


def test_the_second_process_compiles_nothing(tmp_path):
    used, hits, compiled = _run(tmp_path)
    assert used == str(tmp_path) and hits == 0 and compiled > 0
    # However small and quick to compile; and nothing after the `with` is counted.
    assert _run(tmp_path) == (str(tmp_path), compiled, 0)


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_auto_is_the_users_cache(variable, tmp_path):
    used, _, compiled = _run("auto", **{variable: str(tmp_path)})
    cache = tmp_path if variable == "XDG_CACHE_HOME" else tmp_path / ".cache"
    assert used == str(cache / "keel_jax/compilation") and compiled > 0
    assert list(pathlib.Path(used).iterdir())


def test_an_empty_name_is_no_cache(tmp_path):
    assert _run("", HOME=str(tmp_path)) == ("", 0, 0)
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_gets_no_cache_and_is_told():
    """As under a uid that has no entry in the password file."""
    done = _process("auto", before="import os.path; os.path.expanduser = lambda path: path\n")
    assert json.loads(done.stdout) == ["", 0, 0]
    assert "this user has no home directory (HOME is not set)" in done.stderr


def test_a_directory_that_cannot_be_made_is_named_and_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    done = _process(tmp_path / "file/cache")
    assert json.loads(done.stdout) == ["", 0, 0]
    assert f"{tmp_path}/file/cache cannot be created (Not a directory)" in done.stderr


def test_jaxs_own_variable_names_the_users_cache(tmp_path):
    """Also for commands that read other people's directories."""
    script = _SCRIPT.replace("enable_cache(sys.argv[1])", "enable_users_cache()")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
    )
    assert json.loads(done.stdout)[0] == str(tmp_path) and list(tmp_path.iterdir())
    assert _run("auto", JAX_COMPILATION_CACHE_DIR=str(tmp_path))[1] > 0
