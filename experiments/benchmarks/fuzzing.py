"""Seeded damage to files and configs: `fuzz_NAME(seed, directory) -> Outcome`, one trial each.

A trial that raises something else than a `UserError`, or accepts what is absurd, is a fault of the
program and raises here. Any number of trials can be run: the tests run a few hundred,
`experiments.benchmarks.fuzz` thousands.
"""

import bz2
import copy
import gzip
import importlib
import json
import lzma
import math
import pathlib
import random
import shutil
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from experiments.benchmarks import small_runs
from keel_jax import config, errors
from keel_jax.data import index as index_lib
from keel_jax.data import shards
from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation
from keel_jax.runtime import files
from keel_jax.training import checkpoint, checkpoint_meta, manifest

# What a trial ended as: refused with a message of ours, or accepted although it was changed.
Outcome = Literal["refused", "accepted"]

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, math.inf, math.nan),
    *("", "x", "../../etc/passwd", "\ud800", "0" * 64, [], [1], {}, {"a": 1}, [[]] * 3),
)


def fuzz_index(seed: int, directory: pathlib.Path) -> Outcome:
    """Damages index.json of an intact token set and reads the set; the file is put back.

    Accepted is only what leaves every number as it was: a change of white space, or of what only
    describes where the set came from. Two numbers are known by the checksum alone, so that an index
    without one may be off in them: the documents and, with loss weights, their bytes.
    """
    path = directory / shards.INDEX_FILE
    content = path.read_bytes()
    try:
        before = shards.open_set(directory)
        path.write_bytes(_damaged_index(random.Random(seed), content))
        try:
            after = shards.open_set(directory, verify=True)
        except errors.UserError:
            return "refused"
        unknown = () if index_lib.CHECKSUM in after.index else ("num_documents", "num_loss_bytes")
        assert _numbers(after, unknown) == _numbers(before, unknown), f"seed {seed} is accepted"
        return "accepted"
    finally:
        path.write_bytes(content)


# The directories of `write_checkpoints`: the digests in the manifest, and in a file per process.
_CHECKPOINTS = ("digests-inside", "digests-beside")
_STEP = 7


def write_checkpoints(directory: pathlib.Path) -> None:
    """Writes the checkpoints that `fuzz_manifest` damages."""
    meta = checkpoint_meta.Meta(_STEP, "data", "tokenizer", model={"num_blocks": 3})
    for name in _CHECKPOINTS:
        # Only the options of saving matter.
        options = small_runs.options("data", "").train
        with checkpoint.Checkpoints(directory / name, options) as checkpoints:
            checkpoints.save_weights(_weights(), meta)
    step = epath.Path(directory / name / checkpoint.DIRECTORY / str(_STEP))
    manifest.write(step, _STEP, manifest.describe_arrays(params=_weights()), digests=False)
    for rank in range(2):
        manifest.write_digests(step, rank, 2)


def _weights() -> dict[str, jax.Array]:
    return {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(4, dtype=jnp.int32)}


def fuzz_manifest(seed: int, directory: pathlib.Path) -> Outcome:
    """Damages what a checkpoint of `write_checkpoints` says of itself, and reads its weights.

    Accepted are only the weights and the metadata that were written. Some damages have a valid
    checksum, as what another version or another program would write.
    """
    generator = random.Random(seed)
    work = directory / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(directory / generator.choice(_CHECKPOINTS), work)
    step = work / checkpoint.DIRECTORY / str(_STEP)
    own = sorted(path for path in step.iterdir() if path.suffix == ".json")
    path = generator.choice([*own * 3, step / "meta/metadata", step / "_CHECKPOINT_METADATA"])
    content = path.read_bytes()
    kind = generator.randrange(3)
    if kind == 0:
        path.write_bytes(damaged_bytes(generator, content))
    else:
        values = json.loads(content)
        is_sealed = "content_sha256" in values
        changed = damaged_value(generator, values)
        if kind == 1 or not is_sealed or not isinstance(changed, dict):
            path.write_text(json.dumps(changed))
        else:
            changed.pop("content_sha256", None)
            files.write_checked_json(path, changed)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _weights())
    like = jax.tree.map(lambda leaf: leaf.update(sharding=_one_device()), like)
    try:
        with checkpoint.Checkpoints(work) as checkpoints:
            params, meta = checkpoints.restore_params(like)
    except errors.UserError as error:
        assert str(work) in str(error), f"seed {seed}: {error} does not say where"
        return "refused"
    np.testing.assert_equal(jax.device_get(params), jax.device_get(_weights()))
    assert (meta.step, meta.data_fingerprint, meta.tokenizer_fingerprint, meta.model) == (
        *(_STEP, "data", "tokenizer"),
        {"num_blocks": 3},
    ), f"seed {seed}: {meta} is accepted"
    assert meta.diverged is False, f"seed {seed}: {meta} is accepted"
    return "accepted"


def _one_device() -> jax.sharding.SingleDeviceSharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def fuzz_config(seed: int, directory: pathlib.Path) -> Outcome:
    """Changes some values of a config as a run saves it, and checks it."""
    del directory
    generator = random.Random(seed)
    values: Any = config.to_dict(small_runs.options("data", ""))
    for _ in range(generator.randrange(1, 4)):
        values = damaged_value(generator, values)
    try:
        checked = config.from_dict(values)
    except errors.UserError as error:
        assert str(error)
        return "refused"
    assert config.from_dict(config.to_dict(checked)) == checked, f"seed {seed} changes again"
    json.dumps(config.to_dict(checked), allow_nan=False)  # no inf, no nan
    return "accepted"


def fuzz_jsonl(seed: int, directory: pathlib.Path) -> Outcome:
    """Prepares a damaged file of JSON lines with the tokenizer of `directory`."""
    generator = random.Random(seed)
    records: list[Any] = [{"text": f"text {i} of some words", "n": i} for i in range(20)]
    records += [{"prompt": f"{i}?", "response": "yes", "weight": 0.5} for i in range(5)]
    if generator.randrange(2):
        for _ in range(generator.randrange(1, 6)):
            at = generator.randrange(len(records))
            records[at] = damaged_value(generator, [records[at]] * 2)[:1]
            records[at] = records[at][0] if records[at] else None
    lines = [json.dumps(record, ensure_ascii=generator.random() < 0.5) for record in records]
    newline = generator.choice(["\n", "\n", "\n", "\r\n", "\n\n", "\r", ""])
    encoding = generator.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
    content = newline.join(lines).encode(encoding, "surrogatepass")
    if generator.randrange(2):
        content = damaged_bytes(generator, content)
    name = generator.choice(["a.jsonl", "a.json", "a.ndjson", "a[1].jsonl", "a.txt", "a.log", "a"])
    suffix = generator.choice(["", "", ".gz", ".bz2", ".xz"])
    if suffix:
        compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
        content = compress(content)
        if generator.randrange(3) == 0:
            content = damaged_bytes(generator, content)
    return _prepare(generator, directory, name + suffix, content)


def fuzz_parquet(seed: int, directory: pathlib.Path) -> Outcome:
    """Prepares a Parquet file that is damaged, or whose columns are odd, as `fuzz_jsonl` does."""
    generator = random.Random(seed)
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    odd: list[Any] = [
        *([None] * 30, [b"x"] * 30, [{"text": "a"}] * 30, [["a"]] * 30, list(range(30))),
        *([0.5] * 30, ["", None, "a"] * 10, [True] * 30, ["some words of text"] * 30),
    ]
    names = ["text", "prompt", "response", "weight", "a.text", "other"]
    columns = {
        name: generator.choice([*odd, ["a text of words"] * 30])
        for name in generator.sample(names, generator.randrange(1, 5))
    }
    if generator.randrange(2):
        columns["text"] = [f"text {i} of some words" for i in range(30)]
    path = directory / "made.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=generator.choice([1, 7, 100]))
    content = path.read_bytes()
    path.unlink()
    if generator.randrange(2):
        content = damaged_bytes(generator, content)
    name = generator.choice(["a.parquet"] * 4 + ["a.pq", "a.jsonl", "a.txt", "a.gz"])
    return _prepare(generator, directory, name, content)


def _prepare(
    generator: random.Random, directory: pathlib.Path, name: str, content: bytes
) -> Outcome:
    """Prepares one file; what is accepted is a set that verifies, of text and of whole counts."""
    work = directory / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / name).write_bytes(content)
    options = preparation_options.PreparationOptions(
        tokenizer_model=directory / shards.TOKENIZER_FILE,
        validation_fraction=generator.choice([0.0, 0.2]),
        text_field=generator.choice(["text", "text", "text", "a.text", "text.text", "body"]),
        input_format=generator.choice(["auto", "auto", "auto", "jsonl", "text", "parquet"]),
        unit_bytes=generator.choice([0, 0, 200, 1000]),
        max_bad_documents=generator.choice([0, 3, 100]),
    )
    try:
        outcome = preparation.prepare_token_set([str(work / name)], work / "set", options)
    except errors.UserError as error:
        assert len(str(error)) < 3000, f"{len(str(error))} characters are no paragraph"
        return "refused"
    token_set = shards.open_set(work / "set", verify=True)
    splits = [token_set.split(split) for split in token_set.split_names]
    assert outcome.num_documents == sum(split.num_documents for split in splits) > 0
    assert 0 < sum(split.num_bytes for split in splits) <= 100 * len(content) + 1000
    for split in splits:
        tokens = split.tokens(0, split.num_tokens)
        assert tokens.max() < token_set.vocab_size
        assert (tokens == token_set.eos_id).sum() == split.num_documents + 1
    return "accepted"


def _numbers(token_set: shards.TokenSet, unknown: tuple[str, ...]) -> dict[str, Any]:
    """Everything that a run computes with, but for the counts of these names."""
    splits = {name: token_set.split(name) for name in token_set.split_names}
    return {
        "fingerprint": token_set.fingerprint,
        "vocab_size": (token_set.vocab_size, token_set.eos_id),
        "splits": {
            name: [v for k, v in vars(split).items() if not k.startswith("_") and k not in unknown]
            for name, split in splits.items()
        },
    }


def _damaged_index(generator: random.Random, content: bytes) -> bytes:
    """One of: bytes changed, cut, or a value changed; the last with the checksum kept or gone."""
    kind = generator.randrange(5)
    if kind == 0:
        return damaged_bytes(generator, content)
    index = json.loads(content)
    changed = damaged_value(generator, index)
    if kind > 2:
        # As an index from before there were checksums, which only its values speak for.
        changed = without_checksum(changed)
        if kind == 4:
            return json.dumps(_consistent_change(generator, index)).encode()
    return json.dumps(changed).encode()


def _consistent_change(generator: random.Random, index: dict[str, Any]) -> dict[str, Any]:
    """A number of a split that bits per byte are computed from, off by a little."""
    index = without_checksum(index)
    split = index["splits"][generator.choice(list(index["splits"]))]
    key = generator.choice(["num_tokens", "num_targets", "total_target_weight", "num_bytes"])
    split[key] += generator.choice([-1, 1])
    return index


def without_checksum(index: Any) -> Any:
    """The index as one from before there were checksums."""
    if not isinstance(index, dict):
        return index
    return {key: value for key, value in index.items() if key != index_lib.CHECKSUM}


def damaged_bytes(generator: random.Random, content: bytes) -> bytes:
    """`content` with a bit flipped, cut short, emptied, or with bytes put in or left out."""
    changed = bytearray(content)
    at = generator.randrange(max(len(content), 1))
    kind = generator.randrange(6)
    if kind == 0 and changed:
        changed[at] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = generator.randbytes(generator.randrange(1, 9))
    elif kind == 3:
        del changed[at : at + generator.randrange(1, 40)]
    elif kind == 4:
        changed[at : at + 8] = bytes(8)
    else:
        changed = bytearray()
    return bytes(changed)


def damaged_value(generator: random.Random, tree: Any) -> Any:
    """A copy of nested JSON in which one value is odd, missing, doubled, or renamed."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    container, key = generator.choice(places)
    kind = generator.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif kind == 2 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif kind == 3 and isinstance(container[key], int | float):
        container[key] = container[key] * generator.choice([-1, 2, 10]) + generator.choice([0, 1])
    elif kind == 4 and isinstance(container[key], str) and container[key]:
        at = generator.randrange(len(container[key]))
        container[key] = container[key][:at] + "~" + container[key][at + 1 :]
    else:
        container[key] = copy.deepcopy(generator.choice(_ODD_VALUES))
    return tree


def _places(tree: Any):
    """(container, key) of every value of nested JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
