"""The small runs that benchmarks disturb: their options, their programs, and what they end with."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import files
from keel_jax.training import checkpoint, logs, trained

ROOT = pathlib.Path(__file__).parents[2]
# Of most runs the longest part would be LLVM's.
_XLA_FLAGS = "--xla_backend_optimization_level=0"

# --- Options and input ---------------------------------------------------------------------------


def options(data: str, cache: str, **sections: Mapping[str, Any]) -> config.Config:
    """A Keel of three blocks that takes seconds; `sections` are further options, by section."""
    raw = config.default().to_dict()
    raw["model"] |= dict(num_blocks=3, d_model=16, d_ffn=24, num_heads=2, num_kv_heads=2)
    raw["model"] |= dict(compute_dtype="float32")
    raw["data"]["path"] = data
    raw["optim"]["warmup_steps"] = 2
    raw["train"] |= dict(num_steps=6, batch_size=8, seq_len=16, loss_chunk=0, log_every_steps=1)
    raw["runtime"]["compilation_cache_dir"] = cache
    for name, section in sections.items():
        raw[name] |= section
    return config.from_dict(raw)


def write_config(path: pathlib.Path, cfg: config.Config) -> None:
    """Writes `cfg` as a file for --config."""
    path.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict({config.to_dict(cfg)!r})\n"
    )


def write_texts(directory: pathlib.Path) -> str:
    """Writes 30 small files of Python; returns the glob that `prepare` takes."""
    directory.mkdir(exist_ok=True)
    for number in range(30):
        lines = [f"def f_{number}_{i}(x):\n    return x + {i * number}\n" for i in range(40)]
        (directory / f"{number:02}.txt").write_text("\n".join(lines))
    return str(directory / "*.txt")


# --- Programs ------------------------------------------------------------------------------------


def use_fast_compiler() -> None:
    """Lets this process compile as `start` lets others; before the first device is used."""
    os.environ["XLA_FLAGS"] = _XLA_FLAGS


def start(
    module: str, *arguments: str, output: pathlib.Path, prefix: Sequence[str] = (), **more: Any
) -> subprocess.Popen:
    """Starts `python -m module`, whose output is appended to the file `output`.

    Args:
      prefix: a command that runs the program, as `unshare -m`.
      more: further arguments of `subprocess.Popen`.
    """
    with output.open("a") as file:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"XLA_FLAGS": _XLA_FLAGS},
            **more,
        )


def wait(processes: Sequence[subprocess.Popen], seconds: float) -> None:
    """Waits, or until all have ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(0.01)


def exit_code(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code of a process; None if it does not end in time."""
    try:
        return process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        return None


def own_bytes(pid: int) -> int:
    """The memory of a process that is in no file, on Linux: pages of files come and go as the
    kernel likes.

    Raises:
      OSError, KeyError: it has ended.
    """
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap"))


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- What is compared ----------------------------------------------------------------------------


def newest_step(run: pathlib.Path) -> int:
    """The newest committed checkpoint; 0 if there is none."""
    steps = [path.name for path in (run / checkpoint.DIRECTORY).glob("*") if path.name.isdecimal()]
    return max(map(int, steps), default=0)


def weights(workdir: pathlib.Path) -> list[np.ndarray]:
    """The weights of a run, or of one of its trials."""
    mesh = mesh_lib.make(config.MeshConfig(fsdp=1), jax.local_devices()[:1])
    params, _ = trained.load_params(epath.Path(workdir), mesh)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of a log without the clock's."""
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in logs.read(workdir)
    ]


def differences(run: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """How a run, or a trial, differs from one that was never disturbed; often not at all."""
    found = different_weights(run, reference)
    return found if rows(run) == rows(reference) else [*found, "log: the rows differ"]


def different_weights(run: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """As `differences`, of the weights alone."""
    pairs = zip(weights(run), weights(reference), strict=True)
    return [] if all(np.array_equal(a, b) for a, b in pairs) else ["weights: they differ"]


# --- Results -------------------------------------------------------------------------------------


def resumed(log: pathlib.Path, seeds: Iterable[int], run: Callable[[int], dict]) -> Iterator[dict]:
    """The result of `run(seed)` for each seed, of which `log` keeps a line: none is run twice.

    Each result has its "seed".
    """
    results = {row["seed"]: row for row in read_lines(log)}
    for seed in seeds:
        if seed not in results:
            results[seed] = run(seed)
            files.append_text(epath.Path(log), json.dumps(results[seed]) + "\n")
        yield results[seed]


def read_lines(log: pathlib.Path) -> list[dict]:
    """The JSON objects of a log, of which a killed command leaves an unfinished line."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
