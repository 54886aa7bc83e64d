"""What `experiments.benchmarks.damage` damages: every file that the package writes, its readers,
and the ways to damage it."""

import collections
import dataclasses
import pathlib
import random
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

from jax._src import compilation_cache

import keel_jax
from experiments.benchmarks import damage_world, small_runs
from keel_jax import evaluate, inspect_run, train
from keel_jax.model import sampling
from keel_jax.runtime import exit_codes, ownership, verified_cache
from keel_jax.training import logs

GOOD, DIVERGED = "run/trials/000", "run/trials/001"

# --- What is read, and what is compared ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Result:
    """What a reader found."""

    # Must be that of the whole files, or there is an error.
    kept: Any = None
    # May be another one if that is said.
    output: Any = None


class Crashed(Exception):
    """A program ended otherwise than by an error of ours."""


class Refused(OSError):
    """A program ended with an error of ours."""


def _after_training(place: pathlib.Path) -> Result:
    weights = [leaf.tobytes() for leaf in small_runs.weights(place)]
    return Result(weights, small_runs.rows(place))


def _resume_run(world: damage_world.World) -> Result:
    code = train.train(world.run(), world.here / "run")
    assert code == exit_codes.DONE, code
    return _after_training(world.here / GOOD)


def _resume(world: damage_world.World) -> Result:
    # A lease of another machine counts as abandoned after 35 s: too long for hundreds of trials.
    with (
        mock.patch.object(ownership, "ABANDONED_SECONDS", 1.5),
        mock.patch.object(ownership, "_POLL_SECONDS", 0.5),
    ):
        code = train.train(world.lean(), world.here / "lean")
    assert code == exit_codes.DONE, code
    return _after_training(world.here / "lean")


def _resume_process(world: damage_world.World) -> Result:
    """The same in a process of its own, as damaged machine code may end it."""
    code, said = damage_world.train_in_process(
        world.here, world.lean(str(world.here / "cache")), "lean"
    )
    print(said)
    if code == exit_codes.ERROR and "Traceback" not in said:
        raise Refused(said)
    if code != exit_codes.DONE:
        raise Crashed(f"exit code {code}: {said}")
    return _after_training(world.here / "lean")


def _start_from_grown(world: damage_world.World) -> Result:
    cfg = damage_world.lean_options(
        world.here, world.compiled, 5, num_steps=3, init_from=str(world.here / "grown")
    )
    code = train.train(cfg, world.here / "new")
    assert code == exit_codes.DONE, code
    return _after_training(world.here / "new")


def _cached(world: damage_world.World) -> Result:
    """Whether the runtime would load what was written, or nothing and compile again."""
    suffix = "-sha256-cache"
    keys = [path.name.removesuffix(suffix) for path in (world.whole / "cache").glob(f"*{suffix}")]
    verified_cache.install()
    opened, whole = (
        compilation_cache.get_file_cache(str(place / "cache"))
        for place in (world.here, world.whole)
    )
    assert opened is not None and whole is not None
    return Result({key: opened[0].get(key) in (None, whole[0].get(key)) for key in keys})


def _prepare(world: damage_world.World) -> Result:
    damage_world.prepare(world.here)
    return Result({path.name: path.read_bytes() for path in (world.here / "data").iterdir()})


def _evaluate(world: damage_world.World) -> Result:
    return Result(output=evaluate.evaluate(world.here / "lean"))


def _evaluate_grown(world: damage_world.World) -> Result:
    return Result(output=evaluate.evaluate(world.here / "grown"))


def _evaluate_trial(world: damage_world.World) -> Result:
    return Result(output=evaluate.evaluate(world.here / GOOD))


def _generate_from(place: pathlib.Path) -> Result:
    how = sampling.Sampling(temperature=0.0)
    return Result(output=keel_jax.load(place).generate(["some"], num_tokens=4, how=how))


def _generate(world: damage_world.World) -> Result:
    return _generate_from(world.here / GOOD)


def _generate_grown(world: damage_world.World) -> Result:
    return _generate_from(world.here / "grown")


def _inspect_good(world: damage_world.World) -> Result:
    return Result(output=inspect_run.page(world.here / GOOD))


def _inspect_diverged(world: damage_world.World) -> Result:
    return Result(output=inspect_run.page(world.here / DIVERGED))


def _results(world: damage_world.World) -> Result:
    """What an experiment's analysis reads."""
    return Result(output=logs.read_whole(world.here / GOOD))


Reader = Callable[[damage_world.World], Result]

_CHECKPOINT = f"lean/checkpoints/{damage_world.STOPPED_AT}"
_BOTH = (_resume, _evaluate)
_ALL_OF_DATA = (_resume, _evaluate, _prepare)

# Every file, by a glob of its path, and who reads it. A file belongs to the first glob it matches.
ARTEFACTS: Mapping[str, tuple[Reader, ...]] = {
    # A run of several trials.
    "run/config.json": (_evaluate_trial, _resume_run),
    "run/status.json": (_resume_run,),
    "run/versions.json": (_resume_run,),
    "run/events.jsonl": (_resume_run,),
    "run/ancestry.json": (_resume_run,),
    "run/tokenizer.model": (_resume_run,),
    f"{GOOD}/config.json": (_evaluate_trial, _generate, _inspect_good, _resume_run),
    f"{GOOD}/trial.json": (_evaluate_trial, _generate, _resume_run),
    f"{GOOD}/tokenizer.model": (_generate, _resume_run),
    f"{GOOD}/metrics.jsonl": (_results, _inspect_good, _resume_run),
    f"{GOOD}/status.json": (_inspect_good, _resume_run),
    f"{GOOD}/telemetry/*.npz": (_inspect_good, _resume_run),
    f"{GOOD}/tensorboard/events*": (_resume_run,),
    f"{DIVERGED}/divergence.json": (_inspect_diverged, _resume_run),
    f"{DIVERGED}/**": (_resume_run,),
    f"run/checkpoints/{damage_world.STOPPED_AT}/**": (_resume_run, _evaluate_trial),
    "run/checkpoints/**": (_resume_run,),
    # A run of one trial.
    f"{_CHECKPOINT}/manifest.json": _BOTH,
    f"{_CHECKPOINT}/_CHECKPOINT_METADATA": _BOTH,
    f"{_CHECKPOINT}/meta/metadata": _BOTH,
    f"{_CHECKPOINT}/params/**/d/*": _BOTH,
    f"{_CHECKPOINT}/params/_METADATA": _BOTH,
    f"{_CHECKPOINT}/params/_sharding": _BOTH,
    f"{_CHECKPOINT}/params/array_metadatas/*": _BOTH,
    f"{_CHECKPOINT}/params/**/manifest.ocdbt": _BOTH,
    f"{_CHECKPOINT}/progress/**/d/*": _BOTH,
    f"{_CHECKPOINT}/progress/**": _BOTH,
    f"{_CHECKPOINT}/**/commit_success.txt": _BOTH,
    "lean/checkpoints/**": _BOTH,
    "lean/owner.json": _BOTH,
    "lean/config.json": _BOTH,
    "lean/metrics.jsonl": (_resume,),
    "lean/status.json": (_resume,),
    "lean/versions.json": (_resume,),
    "lean/events.jsonl": (_resume,),
    "lean/tokenizer.model": (_resume,),
    "lean/tensorboard/*": (_resume,),
    # Token shards.
    "data/index.json": _ALL_OF_DATA,
    "data/preparation.json": _ALL_OF_DATA,
    "data/tokenizer.json": _ALL_OF_DATA,
    "data/tokenizer.model": _ALL_OF_DATA,
    "data/train-*.bin": _ALL_OF_DATA,
    "data/train-*.weights": _ALL_OF_DATA,
    "data/validation-*.bin": _ALL_OF_DATA,
    "data/validation-*.weights": _ALL_OF_DATA,
    "data/unit-*.json": _ALL_OF_DATA,
    # A grown model.
    "grown/config.json": (_evaluate_grown, _start_from_grown),
    "grown/ancestry.json": (_evaluate_grown, _start_from_grown),
    "grown/tokenizer.model": (_generate_grown, _start_from_grown),
    "grown/checkpoints/*/manifest.json": (_evaluate_grown, _start_from_grown),
    "grown/checkpoints/**/d/*": (_evaluate_grown, _start_from_grown),
    "grown/checkpoints/**": (_evaluate_grown, _start_from_grown),
    # Compiled programs.
    "cache/*": (_cached, _resume_process),
}
# A process takes ten times as long as a reader in this one, and the other damages are the same to
# the cache: a digest that does not match.
_ONLY = {_resume_process: ("bit flipped", "truncated")}

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

# From the content, and that of the foreign file, to what is there instead; None: no file.
DAMAGES: Mapping[str, Damage] = {
    "bit flipped": _flip,
    "truncated": _truncate,
    "emptied": lambda *_: b"",
    "deleted": lambda *_: None,
    "foreign": lambda _, __, foreign: foreign,
    "odd": _odd,
}


def table() -> list[tuple[str, str, Reader]]:
    """Every file with every damage and every reader."""
    return [
        (artefact, damage, reader)
        for artefact, readers in ARTEFACTS.items()
        for damage in DAMAGES
        for reader in readers
        if damage in _ONLY.get(reader, DAMAGES)
    ]


def by_artefact(directory: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The files of a world, relative to it, by the glob that they belong to; "" for none."""
    files = {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}
    found: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    for artefact in ARTEFACTS:
        # pathlib's ** matches directories alone.
        glob = f"{artefact}/*" if artefact.endswith("**") else artefact
        matched = {path.relative_to(directory) for path in directory.glob(glob)} & files
        found[artefact] = sorted(matched)
        files -= matched
    found[""] = sorted(path for path in files if path.parts[0] != "text")
    return found
