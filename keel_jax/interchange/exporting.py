"""A folder that transformers loads, made from a checkpoint leaf by leaf."""

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from keel_jax import errors
from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.interchange import (
    hf_config,
    layout,
    model_card,
    safetensors_file,
    tokenizer_files,
)
from keel_jax.runtime import files
from keel_jax.training import checkpoint, leaves

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
# Of a file of weights, at most, unless one tensor has more.
MAX_SHARD_BYTES = 5_000_000_000
# Of a parameter that is not left to the garbage collector's own time.
_LARGE_BYTES = 1 << 24
_MODELING = pathlib.Path(__file__).parent / "torch_files" / hf_config.MODELING_FILE


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    output: pathlib.Path
    origin: hf_config.Origin
    # As in the model card.
    facts: list[tuple[str, str]]
    num_files: int
    num_bytes: int
    # What the user should know; often nothing.
    notes: tuple[str, ...]


def export(
    workdir: epath.PathLike,
    output: str | os.PathLike,
    *,
    step: checkpoint.Step = None,
    dtype: str = "float32",
    metrics: str | os.PathLike | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Writes the model of `workdir` as a folder for transformers.

    It is written beside `output` under a name of its own and renamed when it is complete. Peak
    memory: a few times the largest leaf, which of a deep model is the FFN's `up` of all blocks.

    Args:
      workdir: of a run, of one of its trials, or what `keel_jax.grow` has written.
      output: a local directory, new or empty.
      step: of the checkpoint.
      dtype: of the weights: "float32", or "bfloat16", which rounds them.
      metrics: a file of `keel_jax.evaluate --json` for the model card.

    Raises:
      UserError: no such checkpoint; a model that the PyTorch file does not compute; `output` is not
        empty or not local; `metrics` are not of this step.
      OSError: it could not be written; nothing is at `output` then.
    """
    tokenizer_files.check_installed()
    output = _check_output(output)
    source = leaves.find(workdir, step)
    cfg = source.cfg
    hf_config.check_supported(cfg.model)
    measured = None
    if metrics is not None:
        content = files.read_json(metrics, remedy="evaluate again")
        measured = model_card.check_metrics(content, source.meta.step, os.fspath(metrics))
    tokenizer, tokenizer_bytes = _tokenizer(epath.Path(workdir), source)
    origin = hf_config.Origin(
        step=source.meta.step,
        tokens=source.meta.step * cfg.train.tokens_per_step,
        seq_len=cfg.train.seq_len,
        data_fingerprint=source.meta.data_fingerprint,
        tokenizer_fingerprint=source.meta.tokenizer_fingerprint,
    )
    text_files = tokenizer_files.make(tokenizer_bytes, cfg.train.seq_len)
    with _renamed_when_complete(output) as folder:
        num_files, num_bytes = _write_weights(folder, source, DTYPES[dtype], max_shard_bytes)
        (folder / hf_config.MODELING_FILE).write_bytes(_MODELING.read_bytes())
        for name, content in text_files.files.items():
            (folder / name).write_bytes(content)
        card = model_card.write(
            cfg.model,
            origin,
            title=output.name,
            dtype=dtype,
            metrics=measured,
            notes=text_files.notes,
        )
        (folder / "README.md").write_text(card)
        generation = _generation_config(tokenizer, cfg.model.vocab_size)
        _write_json(folder / "generation_config.json", generation)
        values = hf_config.of_model(cfg.model, origin, tokenizer.eos_id, dtype)
        _write_json(folder / "config.json", values)
    facts = model_card.facts(cfg.model, origin, dtype)
    return Exported(output, origin, facts, num_files, num_bytes, text_files.notes)


def _check_output(output: str | os.PathLike) -> pathlib.Path:
    if "://" in os.fspath(output):
        raise errors.UserError(f"--output={output} is not local: export to a disk, and copy it.")
    output = pathlib.Path(output).absolute()
    if output.is_dir() and not any(output.iterdir()):
        return output
    if output.exists():
        raise errors.UserError(f"--output={output} is not empty: choose a new or empty directory.")
    return output


def _tokenizer(workdir: epath.Path, source: leaves.Leaves) -> tuple[tokenizer_lib.Tokenizer, bytes]:
    path = workdir / "tokenizer.model"
    tokenizer = tokenizer_lib.Tokenizer.load(path)
    if tokenizer.fingerprint != source.meta.tokenizer_fingerprint:
        raise errors.UserError(
            f"{path} is {tokenizer.fingerprint[:12]}, the checkpoint was trained with "
            f"{source.meta.tokenizer_fingerprint[:12]}: put that one back."
        )
    return tokenizer, path.read_bytes()


@contextlib.contextmanager
def _renamed_when_complete(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory beside `output` that takes its place; after an error it is gone."""
    folder = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    try:
        with files.explained(folder):
            output.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            yield folder
            folder.rename(output)  # an empty directory is replaced
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_weights(
    folder: pathlib.Path, source: leaves.Leaves, dtype: str, max_shard_bytes: int
) -> tuple[int, int]:
    """Writes the weights leaf by leaf; returns the number of files, and of the tensors' bytes."""
    all_leaves = layout.of_keel(source.cfg.model)
    target = safetensors_file.DTYPES[dtype]
    tensors = [
        safetensors_file.Tensor(name, leaf.tensor_shape, target)
        for leaf in all_leaves
        for name in leaf.names
    ]
    shards = _shards(tensors, max_shard_bytes)
    values = _values(source, all_leaves, target)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as file:
            safetensors_file.write(file, shard, itertools.islice(values, len(shard)))
            files.flush_to_disk(file)
        written = safetensors_file.Reader(folder / name)  # refuses what is cut off
        assert set(written.names()) == {tensor.name for tensor in shard}
        weight_map |= {tensor.name: name for tensor in shard}
    num_bytes = sum(tensor.num_bytes for tensor in tensors)
    if len(shards) > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    return len(shards), num_bytes


def _shards(
    tensors: list[safetensors_file.Tensor], max_bytes: int
) -> list[list[safetensors_file.Tensor]]:
    """The tensors in their order, divided among files."""
    shards: list[list[safetensors_file.Tensor]] = []
    size = 0
    for tensor in tensors:
        if not shards or size + tensor.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return shards


def _values(
    source: leaves.Leaves, all_leaves: list[layout.Leaf], dtype: np.dtype
) -> Iterator[np.ndarray]:
    for leaf in all_leaves:
        array = source.read(leaf.path)
        for block in range(len(leaf.names)):
            # A copy: a view would keep the whole leaf while the next one is read.
            yield np.array(leaf.tensor(array, block), dtype, order="C")
        is_large = array.nbytes >= _LARGE_BYTES
        del array  # before the next one is read
        if is_large:
            gc.collect()  # the storage's futures may hold it in a circle


def _generation_config(tokenizer: tokenizer_lib.Tokenizer, vocab_size: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "bos_token_id": tokenizer.eos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id,
    }
    if vocab_size > tokenizer.vocab_size:
        # Rows of a padded table, which are no tokens.
        values["suppress_tokens"] = list(range(tokenizer.vocab_size, vocab_size))
    return values


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
