"""Where a step's time goes on this machine.

    python -m experiments.benchmarks.step_profile --config=FILE

Runs the real train step on random tokens under JAX's profiler, and sums the time of every operation
by kind of work, pass and part of the model. The times of operations that run side by side add up,
so their sum can exceed the step's time. On a shared machine only the fractions mean something.
"""

import collections
import glob
import gzip
import json
import tempfile
import time

import jax
from absl import flags
from ml_collections import config_flags

from experiments.benchmarks import random_batches
from keel_jax import config, errors
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import cycles, hlo, resolve
from keel_jax.runtime import cli, result_file, versions
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

# Operations that contain others, whose time is counted by itself.
_CONTAINERS = ("while", "conditional", "call")


def measure(cfg: config.Config, num_steps: int) -> dict:
    """Microseconds of one step by part, the mean of `num_steps`, and the step's own seconds."""
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    step = step_lib.compile_train_step(resolve.resolve(cfg, mesh), mesh)
    state = state_lib.create(cfg, mesh)
    batch = random_batches.on_mesh(random_batches.random_tokens(cfg), cfg, mesh)
    state, _ = jax.block_until_ready(step(state, batch))
    with tempfile.TemporaryDirectory() as directory:
        begin = time.monotonic()
        with jax.profiler.trace(directory):
            for _ in range(num_steps):
                state, _ = jax.block_until_ready(step(state, batch))
        seconds = (time.monotonic() - begin) / num_steps
        spent = _microseconds(directory)
    parts = cycles.sum_up(
        hlo.read_program(step),
        lambda instruction, _: (
            0 if instruction.opcode in _CONTAINERS else spent[instruction.name] / num_steps
        ),
    )
    return {
        "step_seconds": seconds,
        "parts": [
            {
                "region": part.region,
                "pass": part.pass_,
                "kind": part.kind,
                "microseconds": part.cycles,
            }
            for part in parts
        ],
    }


def _microseconds(directory: str) -> collections.Counter:
    """Time of every HLO operation of the trace in `directory`, by its name."""
    [path] = glob.glob(f"{directory}/**/*.trace.json.gz", recursive=True)
    spent: collections.Counter = collections.Counter()
    with gzip.open(path) as file:
        for event in json.load(file)["traceEvents"]:
            if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
                spent[event["args"]["hlo_op"]] += event["dur"]
    return spent


def main(_: list[str]) -> None:
    """Profiles what the flags say."""
    result_file.check("--json", _JSON.value)
    cfg = config.from_config_dict(_CONFIG.value)
    if not cfg.model.vocab_size:
        raise errors.UserError("model.vocab_size is not set: give one, as no data are read.")
    profile = measure(cfg, _NUM_STEPS.value)
    total = sum(part["microseconds"] for part in profile["parts"])
    print(f"{profile['step_seconds']:.3f} s a step, of operations {total / 1e6:.3f} s:")
    for part in sorted(profile["parts"], key=lambda part: -part["microseconds"]):
        print(
            f"{part['microseconds'] / total:7.1%}  {part['region']}, {part['pass']}: {part['kind']}"
        )
    result_file.write_json(_JSON.value, {**profile, **versions.describe()})


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config",
        "experiments/configs/quickstart.py",
        "Python file with get_config().",
        lock_config=True,
    )
    _NUM_STEPS = flags.DEFINE_integer("num_steps", 3, "Steps under the profiler.", lower_bound=1)
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
