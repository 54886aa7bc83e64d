"""The output directory of a preparation: claimed by one plan; the tokenizer all hosts share."""

import hashlib
import json
import os
import time

from absl import logging
from etils import epath

from keel_jax import errors
from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import atomic_files, corpus, shard_writing
from keel_jax.runtime import files

_TOKENIZER_SIDECAR = "tokenizer.json"
_TEMPORARY = ".tmp-"
_OWN_PATTERNS = (
    "train-*",
    "validation-*",
    "unit-*.json",
    f"*{_TEMPORARY}*",
    _TOKENIZER_SIDECAR,
    shards.TOKENIZER_FILE,
)
_POLL_SECONDS = 0.5
_WAIT_MESSAGE_SECONDS = 60


def temporary_suffix(host_index: int) -> str:
    """Ends the names of this process's unfinished files."""
    return f"{_TEMPORARY}{host_index}-{os.getpid()}"


def claim(output: epath.Path, plan: dict, overwrite: bool, host_index: int, suffix: str):
    """Claims the directory for this plan, or checks that it is claimed by the same one."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in output.iterdir()}
    except (FileExistsError, NotADirectoryError) as error:
        raise errors.UserError(f"The output {output} is a file, or lies below one.") from error
    plan_path = output / shards.PLAN_FILE
    found = atomic_files.read_record(plan_path)
    others = {name for name in names if _TEMPORARY not in name}
    if found is None and others and host_index == 0:
        raise errors.UserError(
            f"The output {output} holds other things ({', '.join(sorted(others)[:3])}) and no "
            f"whole {shards.PLAN_FILE}: choose a new or empty directory."
        )
    if found is not None and found != plan and not (overwrite or host_index):
        changed = [
            f"{key}: {_brief(found.get(key))} there, {_brief(plan.get(key))} now"
            for key in sorted(found.keys() | plan.keys())
            if found.get(key) != plan.get(key)
        ]
        raise errors.UserError(
            f"{output} was prepared, or begun, from another input or with other settings "
            f"({'; '.join(changed)}): choose another --output, or --overwrite to redo it."
        )
    # A killed run of this host leaves temporary files behind; nobody else writes these names.
    for path in output.glob(f"*{_TEMPORARY}{host_index}-*"):
        path.unlink(missing_ok=True)
    if host_index or found == plan:
        _probe(output, suffix)
        return
    if overwrite:
        # The index goes first: it says that the set is whole.
        (output / shards.INDEX_FILE).unlink(missing_ok=True)
        for pattern in _OWN_PATTERNS:
            for path in output.glob(pattern):
                path.unlink(missing_ok=True)
    files.write_json(plan_path, plan, temporary_suffix=suffix)


def _probe(output: epath.Path, suffix: str):
    """Fails if the directory cannot be written: better now than after long work or waiting."""
    probe = output / f"probe{suffix}"
    with files.explained(probe):
        probe.write_bytes(b"")
    probe.unlink()


def make_tokenizer(
    output: epath.Path,
    plan: dict,
    source: corpus.Corpus,
    settings: shard_writing.Settings,
    tokenizer_model: epath.PathLike,
    suffix: str,
) -> tokenizer.Tokenizer:
    model = _ready_tokenizer(output, plan)
    if model is not None:
        return model
    path = output / shards.TOKENIZER_FILE
    temporary = output / (shards.TOKENIZER_FILE + suffix)
    with files.explained(path):
        if tokenizer_model:
            temporary.write_bytes(epath.Path(tokenizer_model).read_bytes())
        else:
            texts = corpus.sample_training_texts(
                source,
                num_bytes=plan["tokenizer.sample_bytes"],
                validation_fraction=settings.validation_fraction,
                text_field=settings.text_field,
            )
            tokenizer.train(
                texts, temporary, plan["tokenizer.vocab_size"], plan["tokenizer.model_type"]
            )
        temporary.replace(path)
    model = tokenizer.Tokenizer.load(path)
    # The sidecar comes after the model: who sees it can use the model.
    ready = {"plan": _plan_digest(plan), "fingerprint": model.fingerprint}
    files.write_json(output / _TOKENIZER_SIDECAR, ready, temporary_suffix=suffix)
    return model


def _ready_tokenizer(output: epath.Path, plan: dict) -> tokenizer.Tokenizer | None:
    """The directory's tokenizer if it is whole and was made for this plan."""
    ready = atomic_files.read_record(output / _TOKENIZER_SIDECAR)
    path = output / shards.TOKENIZER_FILE
    if not ready or ready["plan"] != _plan_digest(plan) or not path.exists():
        return None
    if shards.file_sha256(path) != ready["fingerprint"]:
        return None
    return tokenizer.Tokenizer.load(path)


def await_tokenizer(output: epath.Path, plan: dict, wait_seconds: float) -> tokenizer.Tokenizer:
    begin = last_message = time.monotonic()
    while (model := _ready_tokenizer(output, plan)) is None:
        now = time.monotonic()
        if now - begin > wait_seconds:
            there = atomic_files.read_record(output / shards.PLAN_FILE)
            raise TimeoutError(
                f"Host 0 made no tokenizer for this input and these settings in {output} within "
                f"{wait_seconds:.0f} s: is it running, with the same flags and the same input "
                f"files? (there: {there}; here: {plan})"
            )
        if now - last_message > _WAIT_MESSAGE_SECONDS:
            logging.info("Waiting for host 0's tokenizer in %s: %.0f s.", output, now - begin)
            last_message = now
        time.sleep(_POLL_SECONDS)
    return model


def finished_set(output: epath.Path) -> shards.TokenSet | None:
    if not (output / shards.INDEX_FILE).exists():
        return None
    try:
        return shards.open_set(output)
    except ValueError as error:
        logging.warning("%s Making anew what is missing.", error)
        return None


def _plan_digest(plan: dict) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _brief(value) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else repr(value)
