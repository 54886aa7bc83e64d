"""The output directory of a preparation, which belongs to one plan: its input and its settings."""

import hashlib
import json
import os
import typing

from absl import logging
from etils import epath

from keel_jax import errors
from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import atomic_files, corpus
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import files

TOKENIZER_RECORD_FILE = "tokenizer.json"
_TEMPORARY = ".tmp-"
_OWN_PATTERNS = (
    "train-*",
    "validation-*",
    "unit-*.json",
    f"*{_TEMPORARY}*",
    TOKENIZER_RECORD_FILE,
    shards.TOKENIZER_FILE,
)

# The content of preparation.json: everything that decides the tokens.
Plan: typing.TypeAlias = dict[str, str | int | float]


def make_plan(source: corpus.Corpus, options: preparation_options.PreparationOptions) -> Plan:
    """The plan that these options make for a corpus.

    Raises:
        UserError: the given tokenizer is missing or unusable.
    """
    plan: Plan = {"format": shards.FORMAT, "version": shards.VERSION, "input": source.digest}
    if options.tokenizer_model:
        given = tokenizer.Tokenizer.load(options.tokenizer_model)
        plan["tokenizer.fingerprint"] = given.fingerprint
    else:
        plan["tokenizer.vocab_size"] = options.trained_vocab_size
        plan["tokenizer.model_type"] = options.tokenizer_type
        plan["tokenizer.sample_bytes"] = options.tokenizer_sample_bytes
    return plan | options.shard_settings.to_json()


def plan_digest(plan: Plan) -> str:
    """Identifies a plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def recorded_plan(output: epath.Path) -> dict | None:
    """The plan that the directory belongs to; None if there is no intact one."""
    return atomic_files.read_record(output / shards.PLAN_FILE)


def temporary_suffix(host_index: int) -> str:
    """Ends the names of this process's unfinished files."""
    return f"{_TEMPORARY}{host_index}-{os.getpid()}"


def claim(
    output: epath.Path,
    plan: Plan,
    options: preparation_options.PreparationOptions,
    temporary_suffix: str,
) -> None:
    """Claims the directory for this plan, or checks that it belongs to the same one.

    Raises:
        UserError: a file in its place, files of another origin in it, or another plan without
            `options.overwrite`.
        OSError: the directory cannot be written.
    """
    overwrite, host_index = options.overwrite, options.host_index
    try:
        output.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in output.iterdir()}
    except (FileExistsError, NotADirectoryError) as error:
        raise errors.UserError(f"The output {output} is a file, or lies below one.") from error
    recorded = recorded_plan(output)
    record = atomic_files.read_record(output / TOKENIZER_RECORD_FILE)
    if recorded != plan and record and record.get("plan") == plan_digest(plan):
        logging.warning(
            "%s is damaged: the tokenizer's record is of this plan. Rewriting it.",
            output / shards.PLAN_FILE,
        )
        files.write_json(output / shards.PLAN_FILE, plan, temporary_suffix=temporary_suffix)
        recorded = plan
    other_names = {name for name in names if _TEMPORARY not in name}
    if recorded is None and other_names and host_index == 0:
        raise errors.UserError(
            f"The output {output} contains other files ({', '.join(sorted(other_names)[:3])}) "
            f"and no intact {shards.PLAN_FILE}: choose a new or empty directory."
        )
    if recorded is not None and recorded != plan and not (overwrite or host_index):
        raise errors.UserError(
            f"{output} was prepared, or begun, from other input or with other settings "
            f"({_differences(recorded, plan)}): choose another --output, or add --overwrite to "
            "redo it."
        )
    # A killed run of this host leaves temporary files behind; no other host uses these names.
    for path in files.matching(output, f"*{_TEMPORARY}{host_index}-*"):
        path.unlink(missing_ok=True)
    if host_index or recorded == plan:
        _check_writable(output, temporary_suffix)
        return
    if overwrite:
        # The index goes first: it says that the set is complete.
        (output / shards.INDEX_FILE).unlink(missing_ok=True)
        for pattern in _OWN_PATTERNS:
            for path in files.matching(output, pattern):
                path.unlink(missing_ok=True)
    files.write_json(output / shards.PLAN_FILE, plan, temporary_suffix=temporary_suffix)


def open_if_finished(output: epath.Path) -> shards.TokenSet | None:
    """The directory's token set; None if it has no index yet, or is damaged, which is logged."""
    if not (output / shards.INDEX_FILE).exists():
        return None
    try:
        return shards.open_set(output)
    except ValueError as error:
        logging.warning("%s Rebuilding what is missing.", error)
        return None


def _check_writable(output: epath.Path, temporary_suffix: str) -> None:
    """Fails now if the directory cannot be written, rather than after long work or waiting."""
    probe = output / f"probe{temporary_suffix}"
    with files.explained(probe):
        probe.write_bytes(b"")
    probe.unlink()


def _differences(recorded: dict, plan: Plan) -> str:
    return "; ".join(
        f"{key} was {_shortened(recorded.get(key))}, is now {_shortened(plan.get(key))}"
        for key in sorted(recorded.keys() | plan.keys())
        if recorded.get(key) != plan.get(key)
    )


def _shortened(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else repr(value)
