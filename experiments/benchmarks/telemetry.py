"""What telemetry costs: `python -m experiments.benchmarks.telemetry`.

Times the real train step and the telemetry's program, in turns, on this machine. Prints how much
longer a run with a record every `--every_steps` steps takes than one without. A record costs the
time of the program ("compute") and of its way to the host and to the disk ("keep"); images are
drawn only so often that they cost 1 % of the run. On a shared machine only the ratios of one run
mean something.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
from absl import flags
from etils import epath

from experiments.benchmarks import random_batches
from experiments.configs import quickstart
from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import resolve
from keel_jax.runtime import cli, compilation, result_file, versions
from keel_jax.training import plots, telemetry_records, telemetry_step
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

# Images during a run cost this fraction of it at most (training/telemetry_records.py).
_IMAGES_FRACTION = 0.01


def measure(cfg: config.Config, num_rounds: int) -> dict:
    """Median seconds of a step, of the telemetry's program, and of keeping its record, in turns."""
    mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    begin = time.monotonic()
    train_step = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    middle = time.monotonic()
    statistics_program = telemetry_step.compile_statistics(resolve.resolve(cfg, mesh), mesh)
    compile_seconds = middle - begin, time.monotonic() - middle
    state = state_lib.create(cfg, mesh)
    batch = random_batches.on_mesh(random_batches.random_tokens(cfg), cfg, mesh)
    seconds: dict[str, list[float]] = {"step": [], "compute": [], "keep": []}
    with tempfile.TemporaryDirectory() as directory:
        store = telemetry_records.Store(epath.Path(directory), 0)
        for number in range(num_rounds + 1):
            with _timed(seconds["compute"]):
                stats = jax.block_until_ready(statistics_program(state, batch))
            with _timed(seconds["step"]):
                state, _ = jax.block_until_ready(train_step(state, batch))
            with _timed(seconds["keep"]):
                store.append(number + 1, jax.device_get(stats))
        records = telemetry_records.load(directory)
    with _timed(seconds.setdefault("draw", [])):
        plots.images(records)
    # The first round warms up.
    medians = {name: statistics.median(times[1:] or times) for name, times in seconds.items()}
    return medians | dict(zip(("compile_step", "compile_look"), compile_seconds, strict=True))


@contextlib.contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    """Appends the seconds of the block to a list."""
    begin = time.monotonic()
    yield
    seconds.append(time.monotonic() - begin)


def main(_: list[str]) -> None:
    """Measures what the flags say."""
    result_file.check("--json", _JSON.value)
    compilation.enable_cache("")
    rows, every_steps = [], _EVERY_STEPS.value
    print(
        f"{'blocks':>7} {'step s':>8} {'compute s':>8} {'keep s':>8} {'compute/step':>10} "
        f"{'on/off, no images':>18} {'at most, with them':>19}"
    )
    for num_blocks in map(int, _NUM_BLOCKS.value):
        raw = quickstart.get_config()
        raw.model.vocab_size = 1024
        raw.model.num_blocks = num_blocks
        raw.model.recompute.plan = _PLAN.value
        row = measure(config.from_config_dict(raw), _ROUNDS.value)
        ratio = 1 + (row["compute"] + row["keep"]) / (every_steps * row["step"])
        rows.append({"num_blocks": num_blocks, "on_off": ratio, **row})
        print(
            f"{num_blocks:7} {row['step']:8.3f} {row['compute']:8.3f} {row['keep']:8.3f} "
            f"{row['compute'] / row['step']:10.2f} {ratio:18.4f} {ratio + _IMAGES_FRACTION:19.4f}",
            flush=True,
        )
    if _JSON.value:
        result = {"rows": rows, "every_steps": every_steps, **versions.describe()}
        result_file.write_json(_JSON.value, result)


if __name__ == "__main__":
    _NUM_BLOCKS = flags.DEFINE_list("num_blocks", "8,32", "Depths to measure.")
    _ROUNDS = flags.DEFINE_integer("rounds", 8, "Steps timed, and as many records.", lower_bound=1)
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
