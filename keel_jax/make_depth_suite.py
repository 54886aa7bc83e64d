"""Writes the suite of tasks that ask for depth: as a test, and as training text.

    python -m keel_jax.make_depth_suite --output=DIR [--tasks=recall,…] [--difficulties=1,2,4,8]

docs/depth_suite.md describes the tasks and the files. The same arguments give the same bytes.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from absl import flags
from etils import epath

from keel_jax import errors
from keel_jax.data.preparing import atomic_files
from keel_jax.depth_suite import generation, options, records, registry, splits
from keel_jax.runtime import cli, files

PLAN_FILE = "suite.json"
INDEX_FILE = "index.json"
_OTHER = "give another directory, or remove this one"


def write(chosen: options.SuiteOptions, output: epath.PathLike) -> dict[str, Any]:
    """Writes `test/TASK.jsonl`, `train/TASK.jsonl` and, last, `index.json`; returns the index.

    Raises:
      UserError: the directory holds another suite or other files, or a task has no example at all
        in a split.
      OSError: it could not be written; finished files are kept.
    """
    output = files.make_writable_directory(output)
    plan = {"version": generation.VERSION, **dataclasses.asdict(chosen)}
    plan = json.loads(json.dumps(plan))  # as it is read again
    _claim(output, plan)
    index: dict[str, Any] = {**plan, "task_properties": {}, "files": {}}
    for name in chosen.tasks:
        index["task_properties"][name] = _properties(chosen, name)
        for split, count in ((splits.TEST, chosen.num_test), (splits.TRAIN, chosen.num_train)):
            if count:
                file = f"{split}/{name}.jsonl"
                rows = records.of_split(chosen, name, split)
                index["files"][file] = _write_jsonl(output / file, rows)
    files.write_checked_json(output / INDEX_FILE, index)
    return index


def _claim(output: epath.Path, plan: dict[str, Any]) -> None:
    """Makes the directory this suite's, or checks that it is."""
    found = files.read_json(output / PLAN_FILE, remedy=_OTHER, needs_checksum=True)
    if found is None:
        if others := sorted(path.name for path in output.iterdir()):
            raise errors.UserError(
                f"{output} holds files that are of no suite ({', '.join(others[:3])}): {_OTHER}."
            )
        files.write_checked_json(output / PLAN_FILE, plan)
        return
    changed = [key for key in {**found, **plan} if found.get(key) != plan.get(key)]
    if changed:
        key = changed[0]
        raise errors.UserError(
            f"{output} holds another suite, with {key}={found.get(key)}, not {plan.get(key)}: "
            f"{_OTHER}."
        )


def _properties(chosen: options.SuiteOptions, name: str) -> dict[str, Any]:
    task = registry.get(name)
    chance = {str(difficulty): task.chance(difficulty) for difficulty in chosen.difficulties}
    return {"asks": task.asks, "dial": task.dial, "chance": chance}


def _write_jsonl(path: epath.Path, rows: Iterator[records.Record]) -> dict[str, Any]:
    """Writes the rows, one a line; returns their digest and numbers, of examples by difficulty."""
    path.parent.mkdir(exist_ok=True)
    num_examples = collections.Counter()
    num_records = 0
    file = atomic_files.HashedFile(path.with_name(path.name + ".tmp"))
    try:
        for row in rows:
            file.write(json.dumps(row.value).encode() + b"\n")
            num_records += 1
            num_examples[str(row.difficulty)] += row.num_examples
        file.finish(path)
    finally:
        file.discard()
    return {"sha256": file.sha256, "num_records": num_records, "num_examples": dict(num_examples)}


def describe(index: dict[str, Any]) -> str:
    """The index as text: the examples of each file, and where there are fewer than asked for."""
    lines = [f"{len(index['files'])} files, version {index['version']}, seed {index['seed']}"]
    for file, entry in index["files"].items():
        asked = index["num_test" if file.startswith(splits.TEST) else "num_train"]
        counts = entry["num_examples"]
        line = f"  {file}: {sum(counts.values())} examples"
        fewer = [f"{count} at {key}" for key, count in counts.items() if count < asked]
        lines.append(line + (f" (there are only {', '.join(fewer)})" if fewer else ""))
    return "\n".join(lines)


def main(_: list[str]) -> None:
    chosen = options.SuiteOptions(
        tasks=tuple(_TASKS.value),
        difficulties=tuple(_integer(text) for text in _DIFFICULTIES.value),
        num_train=_NUM_TRAIN.value,
        num_test=_NUM_TEST.value,
        seed=_SEED.value,
        examples_per_document=_EXAMPLES_PER_DOCUMENT.value,
        answers_only=_ANSWERS_ONLY.value,
    )
    print(describe(write(chosen, _OUTPUT.value)))


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise errors.UserError(f"--difficulties: {text!r} is not a whole number.") from error


if __name__ == "__main__":
    _DEFAULTS = options.SuiteOptions()
    _OUTPUT = flags.DEFINE_string("output", None, "Directory for the suite.", required=True)
    _TASKS = flags.DEFINE_list("tasks", list(_DEFAULTS.tasks), "Tasks, separated by commas.")
    _DIFFICULTIES = flags.DEFINE_list(
        "difficulties",
        list(map(str, _DEFAULTS.difficulties)),
        "What the difficulty counts is each task's own: docs/depth_suite.md.",
    )
    _NUM_TRAIN = flags.DEFINE_integer(
        "num_train",
        _DEFAULTS.num_train,
        "Training examples of each task and difficulty; all that there are, if there are fewer.",
    )
    _NUM_TEST = flags.DEFINE_integer("num_test", _DEFAULTS.num_test, "Test examples, likewise.")
    _SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "Another seed, other examples.")
    _EXAMPLES_PER_DOCUMENT = flags.DEFINE_integer(
        "examples_per_document",
        _DEFAULTS.examples_per_document,
        "Examples of one task and difficulty in a training document, one after another.",
    )
    _ANSWERS_ONLY = flags.DEFINE_bool(
        "answers_only",
        _DEFAULTS.answers_only,
        "Write training documents as prompt and response, with the loss on the response alone.",
    )
    cli.run(main)
