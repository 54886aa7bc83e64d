"""Damages every file of a work directory in every way, and counts what is done about it.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.damage --data=runs/embedded

A trial copies a run that was stopped before its end, damages one file, and lets a reader of the
file read it. The result is compared with that of the whole run. What must not happen: a number
that differs without a word about the file ("silent"), and an exception without a message of ours
("traceback").

Checkpoints, token shards and the compilation cache are not among the files: they have checks of
their own.
"""

import collections
import contextlib
import dataclasses
import io
import pathlib
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from keel_jax import config, errors, evaluate, generate, inspect_run, train
from keel_jax.model import sampling
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import cli, exit_codes, result_file
from keel_jax.training import logs, trained

NUM_STEPS, STOPPED_AT = 6, 4
GOOD, DIVERGED = "trials/000", "trials/001"

# --- What is read, and what is compared ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs that trials copy from."""

    # Two trials, of which one diverges, stopped at `STOPPED_AT`; its weights came from `ancestor`.
    stopped: pathlib.Path
    cfg: config.Config
    # Another model with other options, whose files replace those of `stopped`.
    foreign: pathlib.Path


def _resume(cfg: config.Config, run: pathlib.Path) -> Any:
    code = train.train(cfg, run)
    assert code == exit_codes.DONE, code
    mesh = mesh_lib.make(config.MeshConfig(), jax.devices()[:1])
    params, _ = trained.load_params(run / GOOD, mesh)
    return _numbers(run / GOOD), [
        leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(params))
    ]


def _evaluate(_: config.Config, run: pathlib.Path) -> Any:
    return evaluate.evaluate(run / GOOD)


def _generate(_: config.Config, run: pathlib.Path) -> Any:
    how = sampling.Sampling(temperature=0.0)
    return generate.generate(run / GOOD, ["def f"], num_tokens=4, how=how)


def _inspect_good(_: config.Config, run: pathlib.Path) -> Any:
    return inspect_run.page(run / GOOD)


def _inspect_diverged(_: config.Config, run: pathlib.Path) -> Any:
    return inspect_run.page(run / DIVERGED)


def _results(_: config.Config, run: pathlib.Path) -> Any:
    """What an experiment's analysis reads."""
    return logs.read_whole(run / GOOD)


def _numbers(workdir: pathlib.Path) -> list[dict]:
    """The rows of a log without the clock's."""
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in logs.read(workdir)
    ]


Reader = Callable[[config.Config, pathlib.Path], Any]

# Every file, and who reads it.
ARTEFACTS: Mapping[str, tuple[Reader, ...]] = {
    "config.json": (_evaluate, _resume),
    f"{GOOD}/config.json": (_evaluate, _generate, _inspect_good, _resume),
    f"{GOOD}/trial.json": (_evaluate, _generate, _resume),
    f"{GOOD}/tokenizer.model": (_generate, _resume),
    f"{GOOD}/metrics.jsonl": (_results, _inspect_good, _resume),
    "status.json": (_resume,),
    f"{GOOD}/status.json": (_inspect_good, _resume),
    "versions.json": (_resume,),
    "events.jsonl": (_resume,),
    "ancestry.json": (_resume,),
    f"{GOOD}/telemetry/0000000001.npz": (_inspect_good, _resume),
    f"{DIVERGED}/divergence.json": (_inspect_diverged, _resume),
    f"{GOOD}/tensorboard/events": (_resume,),
}

# --- How it is damaged ---------------------------------------------------------------------------


def _flip(content: bytes, rng: random.Random, _: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncate(content: bytes, rng: random.Random, _: bytes) -> bytes:
    return content[: rng.randrange(1, len(content))]


def _odd(_: bytes, rng: random.Random, __: bytes) -> bytes:
    """JSON, but not what is meant."""
    return rng.choice((b"[]", b"3", b"null", b'"x"', b"{}", b'{"step": null}', b'{"model": null}'))


Damage = Callable[[bytes, random.Random, bytes], bytes | None]

# From the content, and that of the foreign run's file, to what is there instead; None: no file.
DAMAGES: Mapping[str, Damage] = {
    "bit flipped": _flip,
    "truncated": _truncate,
    "emptied": lambda *_: b"",
    "deleted": lambda *_: None,
    "foreign": lambda _, __, foreign: foreign,
    "odd": _odd,
}

# --- A trial -------------------------------------------------------------------------------------

# A UserError or an OSError names the file or its directory; a warning does, and the command goes
# on; the same result without a word; another result without a word; and any other exception, or an
# error that does not say what it is about.
VERDICTS = ("error", "fallback", "harmless", "silent", "traceback")


def place(run: pathlib.Path, artefact: str) -> pathlib.Path:
    """The file of an artefact, whose name may end differently in every run."""
    path = run / artefact
    return path if path.exists() else min(path.parent.glob(path.name + "*"), default=path)


def attempt(
    runs: Runs, artefact: str, damage: str, reader: Reader, rng: random.Random, whole: Any
) -> tuple[str, str]:
    """Lets `reader` read a damaged copy; the verdict, and what was said.

    Args:
      whole: the reader's result on an undamaged copy.
    """
    with tempfile.TemporaryDirectory() as directory:
        run = pathlib.Path(directory) / "run"
        shutil.copytree(runs.stopped, run)
        path = place(run, artefact)
        other = place(runs.foreign, artefact)
        foreign = other.read_bytes() if other.exists() else b"from elsewhere"
        content = DAMAGES[damage](path.read_bytes(), rng, foreign)
        path.unlink() if content is None else path.write_bytes(content)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                result = reader(runs.cfg, run)
        except (errors.UserError, OSError) as error:
            text = str(error)
            return ("error" if str(path.parent) in text else "traceback"), text
        except Exception:
            return "traceback", traceback.format_exc()
        text = said.getvalue()
        if str(path.parent) in text:
            return "fallback", text
        return ("harmless" if _same(result, whole) else "silent"), text


def _same(one: Any, other: Any) -> bool:
    try:
        np.testing.assert_equal(one, other)  # NaN equals NaN
    except AssertionError:
        return False
    return True


def references(runs: Runs) -> dict[Reader, Any]:
    """What every reader finds in a run that is whole."""
    found = {}
    for reader in dict.fromkeys(reader for readers in ARTEFACTS.values() for reader in readers):
        with tempfile.TemporaryDirectory() as directory:
            run = pathlib.Path(directory) / "run"
            shutil.copytree(runs.stopped, run)
            with contextlib.redirect_stdout(io.StringIO()):
                found[reader] = reader(runs.cfg, run)
    return found


# --- The runs ------------------------------------------------------------------------------------


def make_runs(directory: pathlib.Path, base: config.Config) -> Runs:
    """Trains the runs that trials copy from.

    Args:
      base: a small model of at least two blocks on some data.
    """

    def with_options(cfg: config.Config, **changes: Any) -> config.Config:
        values = config.to_dict(cfg)
        values["train"].pop("num_tokens")
        for section, options in changes.items():
            values[section].update(options)
        return config.from_dict(values)

    short = dict(num_steps=NUM_STEPS, checkpoint_every_steps=1, keep_checkpoints=NUM_STEPS)
    small = dict(
        train=dict(short, log_every_steps=1, eval_every_steps=2, eval_num_batches=1),
        optim=dict(warmup_steps=2),
        telemetry=dict(every_steps=2),
    )
    ancestor = with_options(base, **small)
    cfg = with_options(ancestor, trials=dict(peak_lr=(1e-3, 1e30)))
    cfg = with_options(cfg, train=dict(init_from=str(directory / "ancestor")))
    foreign = with_options(
        ancestor,
        model=dict(topology="pre_ln", num_blocks=base.model.num_blocks - 1),
        trials=dict(peak_lr=(2e-3, 1e30)),
        train=dict(log_every_steps=2),
    )
    for name, each in (("ancestor", ancestor), ("stopped", cfg), ("foreign", foreign)):
        train.train(each, directory / name)
    for step in range(STOPPED_AT + 1, NUM_STEPS + 1):
        shutil.rmtree(directory / "stopped/checkpoints" / str(step))
    return Runs(directory / "stopped", cfg, directory / "foreign")


# --- The command ---------------------------------------------------------------------------------


def main(_: list[str]) -> int:
    """Damages as often as the flags say; 1 if anything was silent or a traceback."""
    result_file.check("--json", _JSON.value)
    raw = config.default()
    for name, value in dict(
        num_blocks=3, d_model=16, d_ffn=24, num_heads=2, num_kv_heads=2
    ).items():
        raw.model[name] = value
    raw.model.compute_dtype = "float32"
    raw.data.path = _DATA.value
    raw.train.num_steps = NUM_STEPS
    raw.optim.warmup_steps = 2
    raw.train.batch_size, raw.train.seq_len, raw.train.loss_chunk = 8, 16, 0
    with tempfile.TemporaryDirectory() as directory:
        counts, examples = measure(
            make_runs(pathlib.Path(directory), config.from_config_dict(raw)),
            _TRIALS.value,
            _SEED.value,
        )
    print(f"{'file':<34} {'damage':<12}" + "".join(f"{verdict:>10}" for verdict in VERDICTS))
    for (artefact, damage), row in counts.items():
        print(f"{artefact:<34} {damage:<12}" + "".join(f"{row[v]:>10}" for v in VERDICTS))
    total = sum(counts.values(), collections.Counter())
    print(f"{'all':<47}" + "".join(f"{total[v]:>10}" for v in VERDICTS))
    for example in examples:
        print(example)
    rows = [{"file": a, "damage": d, **row} for (a, d), row in counts.items()]
    result_file.write_json(_JSON.value, {"seed": _SEED.value, "rows": rows, "examples": examples})
    return exit_codes.ERROR if total["silent"] or total["traceback"] else exit_codes.DONE


def measure(
    runs: Runs, num_trials: int, seed: int
) -> tuple[dict[tuple[str, str], collections.Counter], list[str]]:
    """Counts the verdicts of `num_trials` trials, spread evenly over the table.

    Returns:
      The counts by file and damage, and what was said where something was silent or a traceback.
    """
    table = [
        (artefact, damage, reader)
        for artefact, readers in ARTEFACTS.items()
        for damage in DAMAGES
        for reader in readers
    ]
    whole = references(runs)
    rng = random.Random(seed)
    order = [rng.sample(table, len(table)) for _ in range(-(-num_trials // len(table)))]
    counts: dict[tuple[str, str], collections.Counter] = collections.defaultdict(
        collections.Counter
    )
    examples = []
    for number, (artefact, damage, reader) in enumerate(sum(order, [])[:num_trials]):
        own = random.Random(f"{seed}/{number}")
        verdict, said = attempt(runs, artefact, damage, reader, own, whole[reader])
        counts[artefact, damage][verdict] += 1
        if verdict in ("silent", "traceback"):
            examples.append(f"{verdict}: {artefact} {damage}, {reader.__name__}: {said[-2000:]}")
        # Trials take seconds each, and a command that is stopped should not have been in vain.
        print(f"{number + 1}/{num_trials} {artefact} {damage}: {verdict}", file=sys.stderr)
    return dict(sorted(counts.items())), examples


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Token shards to train on.", required=True)
    _TRIALS = flags.DEFINE_integer("trials", 500, "Files to damage.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of the damages.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
