"""What telemetry costs: `python -m experiments.benchmarks.telemetry`.

Times the real train step and the program that looks at it, in turns, on this machine, and prints
what a run with records every `--every_steps` steps takes beside one without: the look, its way to
the host and to the disk, and the images, which are drawn as often as costs 1 %. Ratios of one run
can be compared, seconds of a shared machine cannot.
"""

import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import flags
from etils import epath

from experiments.configs import quickstart
from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import resolve
from keel_jax.runtime import cli, compilation, versions
from keel_jax.training import plots, telemetry_records, telemetry_step
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

# Images during a run cost this share of it at most (training/telemetry_records.py).
_IMAGES = 0.01


def measure(cfg: config.Config, num_rounds: int) -> dict:
    """Median seconds of a step, of a look, and of keeping a record, taken in turns."""
    mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    begin = time.monotonic()
    train_step = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    middle = time.monotonic()
    look = telemetry_step.compile_statistics(resolve.resolve(cfg, mesh), mesh)
    compile_seconds = middle - begin, time.monotonic() - middle
    state = state_lib.create(cfg, mesh)
    batch = _batch(cfg, mesh)
    seconds: dict[str, list[float]] = {"step": [], "look": [], "keep": []}
    with tempfile.TemporaryDirectory() as directory:
        store = telemetry_records.Store(epath.Path(directory), 0)
        for number in range(num_rounds + 1):
            with _timed(seconds["look"]):
                seen = jax.block_until_ready(look(state, batch))
            with _timed(seconds["step"]):
                state, _ = jax.block_until_ready(train_step(state, batch))
            with _timed(seconds["keep"]):
                store.append(number + 1, jax.device_get(seen))
        records = telemetry_records.load(directory)
    with _timed(seconds.setdefault("draw", [])):
        plots.images(records)
    # The first round warms up.
    medians = {name: statistics.median(times[1:] or times) for name, times in seconds.items()}
    return medians | dict(zip(("compile_step", "compile_look"), compile_seconds, strict=True))


class _timed:
    """Appends the seconds of the block to a list."""

    def __init__(self, seconds: list[float]):
        self._seconds = seconds

    def __enter__(self):
        self._begin = time.monotonic()

    def __exit__(self, *_):
        self._seconds.append(time.monotonic() - self._begin)


def _batch(cfg: config.Config, mesh) -> dict:
    tokens = np.random.default_rng(0).integers(
        0, cfg.model.vocab_size, (cfg.train.batch_size, cfg.train.seq_len + 1)
    )
    values = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.zeros_like(tokens[:, 1:]),
        "loss_weights": np.ones_like(tokens[:, 1:]),
    }
    return {
        key: jax.device_put(values[key].astype(leaf.dtype), leaf.sharding)
        for key, leaf in step_lib.abstract_batch(cfg, mesh).items()
    }


def main(_):
    compilation.enable_cache("")
    rows = []
    print(
        f"{'blocks':>7} {'step s':>8} {'look s':>8} {'keep s':>8} {'look/step':>10} "
        f"{'on/off, no images':>18} {'at most, with them':>19}"
    )
    for num_blocks in map(int, _NUM_BLOCKS.value):
        raw = quickstart.get_config()
        raw.model.vocab_size = 1024
        raw.model.num_blocks = num_blocks
        raw.model.recompute.plan = _PLAN.value
        found = measure(config.from_config_dict(raw), _ROUNDS.value)
        every = _EVERY_STEPS.value
        ratio = 1 + (found["look"] + found["keep"]) / (every * found["step"])
        rows.append({"num_blocks": num_blocks, "on_off": ratio, **found})
        print(
            f"{num_blocks:7} {found['step']:8.3f} {found['look']:8.3f} {found['keep']:8.3f} "
            f"{found['look'] / found['step']:10.2f} {ratio:18.4f} {ratio + _IMAGES:19.4f}",
            flush=True,
        )
    if _JSON.value:
        result = {"rows": rows, "every_steps": every, **versions.describe()}
        pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    _NUM_BLOCKS = flags.DEFINE_list("num_blocks", "8,32", "Depths to measure.")
    _ROUNDS = flags.DEFINE_integer("rounds", 8, "Steps, and looks in between.", lower_bound=1)
    _EVERY_STEPS = flags.DEFINE_integer(
        "every_steps",
        config.TelemetryConfig().every_steps,
        "As telemetry.every_steps.",
        lower_bound=1,
    )
    _PLAN = flags.DEFINE_enum(
        "recompute", "none", ["none", "block", "segments"], "As model.recompute.plan."
    )
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
