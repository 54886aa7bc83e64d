"""What saving, verifying and restoring cost: `python -m experiments.benchmarks.checkpoints`.

Side by side in one run, round by round: how long a save blocks the loop, beside a plain copy of the
same bytes in memory; the whole save, beside a plain write of them with fsync; a restore with every
byte verified, with sizes verified, and unverified, beside a plain read. On a shared machine only
the ratios between the lines of one run mean something. Files just written are in the page cache:
what is read comes from memory, for all contenders alike.

Then --memory_saves saves of a small state, each of which leaves memory behind
(docs/checkpoints.md).
"""

import collections
import dataclasses
import functools
import gc
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import small_runs
from experiments.configs import tiny
from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import cli, result_file, versions
from keel_jax.training import checkpoint, checkpoint_meta
from keel_jax.training import state as state_lib


def bench(num_blocks: int, num_rounds: int, directory: pathlib.Path) -> dict:
    """Median seconds of each contender, and the number of bytes that each moves."""
    raw = tiny.get_config()
    raw.model.num_blocks = num_blocks
    raw.model.d_model, raw.model.d_ffn, raw.model.vocab_size = 256, 768, 384
    cfg = config.from_config_dict(raw)
    mesh = mesh_lib.make(cfg.mesh)
    state = jax.block_until_ready(state_lib.create(cfg, mesh))
    abstract = state_lib.abstract(cfg, mesh)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    seconds = collections.defaultdict(list)
    for number in range(num_rounds):
        for name, duration in _round(cfg, state, abstract, leaves, directory / str(number)):
            seconds[name].append(duration)
    return {
        "num_bytes": sum(leaf.nbytes for leaf in leaves),
        "num_rounds": num_rounds,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }


def _round(cfg, state, abstract, leaves, directory: pathlib.Path) -> Iterator[tuple[str, float]]:
    directory.mkdir()
    yield "copy in memory", _seconds(lambda: [leaf.copy() for leaf in leaves])
    yield "plain write", _seconds(lambda: _write(directory / "plain", leaves))
    yield "plain read", _seconds((directory / "plain").read_bytes)
    with checkpoint.Checkpoints(directory, cfg.train) as checkpoints:
        meta = checkpoint_meta.Meta(1, "data", "tokenizer")
        state = dataclasses.replace(state, step=state.step + 1)
        begin = time.perf_counter()
        checkpoints.save(state, meta)
        yield "save: blocked", time.perf_counter() - begin
        checkpoints.wait()
        yield "save: whole", time.perf_counter() - begin
    for verification in ("contents", "sizes"):
        train = dataclasses.replace(cfg.train, verify_checkpoints=verification)
        with checkpoint.Checkpoints(directory, train) as checkpoints:
            yield f"verify: {verification}", _seconds(checkpoints.set_damaged_aside)
            yield "restore", _seconds(functools.partial(checkpoints.restore, abstract))


def bytes_kept_per_save(num_saves: int, directory: pathlib.Path) -> float:
    """By how much the process's own memory grows with each save; the first half is not counted."""
    raw = tiny.get_config()
    raw.model.vocab_size = 384
    cfg = config.from_config_dict(raw)
    state = jax.block_until_ready(state_lib.create(cfg, mesh_lib.make(cfg.mesh)))
    at_half, half = 0, num_saves // 2
    with checkpoint.Checkpoints(directory, cfg.train) as checkpoints:
        for step in range(1, num_saves + 1):
            checkpoints.save(state, checkpoint_meta.Meta(step, "data", "tokenizer"))
            checkpoints.wait()
            if step == half:
                at_half = _own_bytes()
    return (_own_bytes() - at_half) / (num_saves - half)


def _own_bytes() -> int:
    gc.collect()
    return small_runs.own_bytes(os.getpid())


def _write(path: pathlib.Path, leaves: list[np.ndarray]) -> None:
    with path.open("wb") as file:
        for leaf in leaves:
            file.write(memoryview(np.atleast_1d(leaf)).cast("B"))
        file.flush()
        os.fsync(file.fileno())


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def main(_: list[str]) -> None:
    result_file.check("--json", _JSON.value)
    with tempfile.TemporaryDirectory(dir=_DIRECTORY.value) as directory:
        result = bench(_NUM_BLOCKS.value, _ROUNDS.value, pathlib.Path(directory))
    megabytes = result["num_bytes"] / 1e6
    print(f"{megabytes:.0f} MB of state, median of {result['num_rounds']} rounds")
    for name, seconds in result["seconds"].items():
        print(f"{name:16} {seconds:8.3f} s  {megabytes / seconds:8.0f} MB/s")
    if _MEMORY_SAVES.value:
        with tempfile.TemporaryDirectory(dir=_DIRECTORY.value) as directory:
            kept = bytes_kept_per_save(_MEMORY_SAVES.value, pathlib.Path(directory))
        print(f"memory kept after a save of a small state: {kept / 1e3:.0f} kB")
        result["bytes_kept_per_save"] = kept
    result_file.write_json(_JSON.value, {**result, **versions.describe()})


if __name__ == "__main__":
    _NUM_BLOCKS = flags.DEFINE_integer("num_blocks", 24, "Size of the state: 10 MB a block.")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds, of which the median is printed.")
    _MEMORY_SAVES = flags.DEFINE_integer("memory_saves", 200, "0: the memory is not measured.")
    _DIRECTORY = flags.DEFINE_string("directory", None, "Where to write; default: the temporary.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
