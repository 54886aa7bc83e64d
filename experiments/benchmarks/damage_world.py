"""The files that `experiments.benchmarks.damage` damages: made, and made whole again."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import random
import shutil
import struct
from collections.abc import Iterator
from typing import Any
from unittest import mock

from experiments.benchmarks import small_runs
from keel_jax import config, grow, train
from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation
from keel_jax.runtime import ownership
from keel_jax.training import plots, telemetry_step
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib

NUM_STEPS, STOPPED_AT = 6, 4

# --- What is there -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class World:
    """A directory with one of everything, made by `make`.

    data, text      token shards with loss weights, and what `prepare` made them of
    lean            a run that was killed at `STOPPED_AT` and still has its owner.json
    run             the same of two trials with telemetry, of which one diverged; its weights came
                    from `lean`
    grown           a deeper model, by `grow`
    cache           compiled programs of `lean`
    """

    # Read, and damaged.
    here: pathlib.Path
    # The same files, whole.
    whole: pathlib.Path
    # Those of another model and other data, which replace files.
    foreign: pathlib.Path
    # Programs that this process compiles.
    compiled: str

    def lean(self, cache: str = "", **train_options: Any) -> config.Config:
        """The options of the run `lean`."""
        return lean_options(self.here, cache or self.compiled, **train_options)

    def run(self) -> config.Config:
        """The options of the run `run`."""
        return _run(self.here, self.compiled, peak_lr=(1e-3, 1e30))

    def restore(self) -> None:
        """Makes everything whole again."""
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.whole, self.here)


_SAVES = dict(num_steps=NUM_STEPS, checkpoint_every_steps=1, keep_checkpoints=NUM_STEPS)
_SAVES |= dict(eval_every_steps=2, eval_num_batches=1)
_NO_TELEMETRY = dict(every_steps=0)


def lean_options(
    place: pathlib.Path, cache: str, num_blocks: int = 3, **more: Any
) -> config.Config:
    """The options of a run of one trial; `more` are options of `train`."""
    return small_runs.options(
        str(place / "data"),
        cache,
        model=dict(num_blocks=num_blocks),
        train=_SAVES | more,
        telemetry=_NO_TELEMETRY,
    )


def _run(place: pathlib.Path, cache: str, peak_lr: tuple[float, float], **model) -> config.Config:
    return small_runs.options(
        str(place / "data"),
        cache,
        model=model,
        train=_SAVES | ({} if model else dict(init_from=str(place / "lean"))),
        trials=dict(peak_lr=peak_lr),
        telemetry=dict(every_steps=2),
    )


def make(directory: pathlib.Path) -> World:
    """Prepares, trains and grows what trials damage; some minutes.

    Args:
      directory: `World.here` is there, and a world that is there already is used.
    """
    world = World(
        directory / "here", directory / "whole", directory / "foreign", str(directory / "compiled")
    )
    if world.whole.exists():
        return world
    for place, seed in ((world.foreign, 1), (world.here, 0)):
        shutil.rmtree(place, ignore_errors=True)
        _make_one(place, seed, world)
    # A world is complete or absent.
    shutil.copytree(world.here, directory / "unfinished", dirs_exist_ok=True)
    (directory / "unfinished").rename(world.whole)
    return world


def _make_one(place: pathlib.Path, seed: int, world: World) -> None:
    is_foreign = place == world.foreign
    (place / "text").mkdir(parents=True)
    rng = random.Random(seed)
    with (place / "text/a.jsonl").open("w") as file:
        for number in range(120):
            words = " ".join(rng.choices("some words of an answer that is long".split(), k=30))
            value = {"prompt": f"question {number}", "response": words, "weight": 0.5 + number % 3}
            file.write(json.dumps(value) + "\n")
    prepare(place)
    num_blocks = 2 if is_foreign else 3
    train.train(lean_options(place, world.compiled, num_blocks), place / "lean")
    # Its programs, as a process of its own compiles them.
    train_in_process(place, lean_options(place, str(place / "cache"), num_blocks), "compiled")
    shutil.rmtree(place / "compiled")
    peak_lr = (2e-3, 1e30) if is_foreign else (1e-3, 1e30)
    model: dict[str, Any] = dict(topology="pre_ln", num_blocks=2) if is_foreign else {}
    train.train(_run(place, world.compiled, peak_lr, **model), place / "run")
    with contextlib.chdir(place):  # the ancestry has the path
        grow.grow(place / "lean", place / "grown", num_blocks=num_blocks + 2, method="identity")
    for name in ("lean", "run"):
        for step in range(STOPPED_AT + 1, NUM_STEPS + 1):
            shutil.rmtree(place / name / "checkpoints" / str(step))
    ended = ownership.Claim(place / "lean")
    ended._owner = dataclasses.replace(ended._owner, pid=2**22 + seed)  # above the largest pid
    ended._write()


def prepare(place: pathlib.Path) -> None:
    """Makes, or completes, the token shards of a world's text."""
    options = preparation_options.PreparationOptions(
        vocab_size=300, validation_fraction=0.2, unit_bytes=12_000
    )
    preparation.prepare_token_set([str(place / "text/*.jsonl")], place / "data", options)


def train_in_process(place: pathlib.Path, cfg: config.Config, name: str) -> tuple[int | None, str]:
    """Trains in a process of its own; the exit code, and what it said."""
    path, output = place.parent / "config.py", place.parent / "output.txt"
    small_runs.write_config(path, cfg)
    output.unlink(missing_ok=True)
    flags = (f"--config={path}", f"--workdir={place / name}")
    process = small_runs.start("keel_jax.train", *flags, output=output)
    code = small_runs.exit_code(process, 600.0)
    process.kill()
    return code, output.read_text(errors="replace")


# --- Cheaper trials ------------------------------------------------------------------------------


def fast() -> contextlib.ExitStack:
    """Within it, what depends on no file is computed once, and nothing is rasterised.

    Programs and abstract states are functions of the options and the mesh, and take most of a short
    run's time. Instead of a picture there is a digest of what it shows.
    """
    stack = contextlib.ExitStack()
    for module, name in (
        (state_lib, "abstract"),
        (state_lib, "shardings"),
        (step_lib, "compile_train_step"),
        (step_lib, "compile_eval_step"),
        (telemetry_step, "compile_statistics"),
    ):
        once = functools.cache(getattr(module, name))
        stack.enter_context(mock.patch.object(module, name, once))
    stack.enter_context(mock.patch.object(plots, "png", _digest_of_picture))
    return stack


def _digest_of_picture(canvas) -> bytes:
    """The beginning of a PNG of one pixel, with a digest of the lines, fills and colours."""
    digest = hashlib.sha256()
    for content in _drawn(canvas):
        digest.update(content)
    return b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 1, 1) + digest.digest()


def _drawn(canvas) -> Iterator[bytes]:
    for axes in canvas.axes:
        yield axes.get_title().encode()
        for line in axes.lines:
            yield line.get_xydata().tobytes()
        for image in (*axes.images, *axes.collections):
            array = image.get_array()
            yield b"" if array is None else array.tobytes()
