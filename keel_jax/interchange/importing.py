"""A checkpoint from a folder of transformers: one that was exported, or a Llama."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath

from keel_jax import config, errors
from keel_jax.data import tokenizer as tokenizer_lib
from keel_jax.interchange import folder as folder_lib
from keel_jax.interchange import hf_config, layout, llama
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import files, versions
from keel_jax.training import ancestry, checkpoint, checkpoint_meta, verification
from keel_jax.training import state as state_lib
from keel_jax.training import workdir as workdir_lib

_ACTION = "import_hf"
_TOKENIZER = "tokenizer.model"
# A buffer that old versions of Llama saved; it follows from rope_theta.
_DERIVED = ".rotary_emb.inv_freq"
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"


def import_folder(
    source: str | os.PathLike,
    workdir: epath.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Writes the weights of `source` as a checkpoint in the new or empty directory `workdir`.

    Peak memory: about twice the weights in float32, which are sharded over all devices, and
    copied when they are saved.

    Args:
      source: of `exporting.export`, also after training in PyTorch and save_pretrained; or of a
        LlamaForCausalLM.
      tokenizer: a SentencePiece model, for a folder that has none.

    Returns:
      The entry that `ancestry.json` gets for it.

    Raises:
      UserError: a file is missing or damaged, the model is one of another kind, or `workdir` is not
        empty or in use.
      OSError: it could not be written; `workdir` then has no config.json and cannot be read.
    """
    folder, workdir = pathlib.Path(source), epath.Path(workdir)
    path = str(folder / "config.json")
    values = files.read_json(path, remedy="get it again")
    if not isinstance(values, dict):
        raise errors.UserError(f"There is no model in {folder}: it has no config.json.")
    verification.check_path(workdir)
    weights = folder_lib.open_weights(folder)
    cfg, origin, leaves = _understand(values, path, weights)
    tokenizer_bytes = _tokenizer_bytes(folder, tokenizer, cfg.model.vocab_size, origin)
    _check_tensors(weights, leaves, cfg.model)
    with workdir_lib.claimed(files.make_writable_directory(workdir)):
        workdir_lib.check_empty(workdir, "--workdir")
        params = _params(weights, leaves, cfg)
        ancestor = ancestry.entry(
            _ACTION,
            folder,
            origin.step,
            cfg.model,
            model_type=values["model_type"],
            versions=versions.describe()["packages"],
        )
        with checkpoint.Checkpoints(workdir, cfg.train) as checkpoints:
            checkpoints.save_weights(params, _meta(cfg, origin, tokenizer_bytes))
        ancestry.record(workdir, [ancestor])
        files.write_bytes(workdir / _TOKENIZER, tokenizer_bytes)
        # Written last: no entry point accepts the directory without it.
        files.write_checked_json(workdir / checkpoint.CONFIG, config.to_dict(cfg))
    return ancestor


def _understand(
    values: dict[str, Any], path: str, weights: folder_lib.Weights
) -> tuple[config.Config, hf_config.Origin, list[layout.Leaf]]:
    kind = values.get("model_type")
    if kind == hf_config.MODEL_TYPE:
        model, origin = hf_config.to_model(values, path)
        leaves = layout.of_keel(model)
    elif kind == llama.MODEL_TYPE:
        is_float32 = weights.dtypes() == {np.dtype(np.float32)}
        dtype = "float32" if is_float32 else "bfloat16"
        model, seq_len = llama.to_model(values, path, dtype)
        origin = hf_config.Origin(0, 0, seq_len, "", "")
        leaves = layout.of_llama(model)
    else:
        raise errors.UserError(
            f"{path}: model_type={kind!r}; folders of keel_jax.export "
            f'("{hf_config.MODEL_TYPE}") and of "{llama.MODEL_TYPE}" are read.'
        )
    cfg = config.Config(model=model)
    train = config.TrainConfig(num_steps=cfg.train.num_steps, seq_len=origin.seq_len)
    return dataclasses.replace(cfg, train=train), origin, leaves


def _tokenizer_bytes(
    folder: pathlib.Path,
    given: str | os.PathLike | None,
    vocab_size: int,
    origin: hf_config.Origin,
) -> bytes:
    path = pathlib.Path(given) if given else folder / _TOKENIZER
    if not path.is_file():
        raise errors.UserError(
            f"There is no {path}: keel_jax reads SentencePiece models alone, and no tokenizer.json "
            "or tiktoken file. Give one that the model was trained with, as --tokenizer=FILE."
        )
    tokenizer = tokenizer_lib.Tokenizer.load(path)
    if tokenizer.vocab_size > vocab_size:
        raise errors.UserError(
            f"{path} has {tokenizer.vocab_size} ids, and the model {vocab_size}: it is not the "
            "model's tokenizer."
        )
    if origin.tokenizer_fingerprint not in ("", tokenizer.fingerprint):
        raise errors.UserError(
            f"{path} is {tokenizer.fingerprint[:12]}, the model was trained with "
            f"{origin.tokenizer_fingerprint[:12]}: put that one back."
        )
    return path.read_bytes()


def _check_tensors(
    weights: folder_lib.Weights, leaves: list[layout.Leaf], model: config.ModelConfig
) -> None:
    names = weights.names()
    if model.tie_embeddings and _HEAD in names and _TABLE in names:
        if not np.array_equal(weights.read(_HEAD), weights.read(_TABLE)):
            raise errors.UserError(
                f"{weights.path(_HEAD)}: {_HEAD} is not {_TABLE}, and config.json ties them."
            )
        names = names - {_HEAD}
    layout.check_names(names, leaves, lambda name: name.endswith(_DERIVED), str(weights.folder))
    for leaf in leaves:
        for name in leaf.names:
            if weights.shape(name) != leaf.tensor_shape:
                raise errors.UserError(
                    f"{weights.path(name)}: {name} has shape {weights.shape(name)}, and by "
                    f"config.json it would be {leaf.tensor_shape}."
                )


def _params(weights: folder_lib.Weights, leaves: list[layout.Leaf], cfg: config.Config) -> Any:
    """The tree of parameters, float32, sharded over all devices; leaf by leaf."""
    mesh = mesh_lib.make(mesh_lib.widest(cfg.model))
    shardings = state_lib.shardings(cfg, mesh).params
    by_path = {}
    for leaf in leaves:
        sharding = functools.reduce(lambda tree, name: tree[name], leaf.path, shardings)
        by_path[leaf.path] = jax.block_until_ready(
            jax.make_array_from_callback(
                leaf.shape, sharding, functools.partial(_part, weights, leaf)
            )
        )
    return layout.tree(by_path)


def _part(
    weights: folder_lib.Weights, leaf: layout.Leaf, index: tuple[slice, ...] | None
) -> np.ndarray:
    """A part of one of our parameters, float32, from the tensors of the blocks that it has."""
    assert index is not None

    def ours(name: str) -> np.ndarray:
        tensor = weights.read(name)
        return tensor.T if leaf.is_transposed else tensor

    if not leaf.is_stacked:
        return np.ascontiguousarray(ours(leaf.names[0])[index], np.float32)
    names, within = leaf.names[index[0]], index[1:]
    shape = (len(names), *ours(names[0])[within].shape)
    part = np.empty(shape, np.float32)
    for block, name in enumerate(names):
        part[block] = ours(name)[within]
    return part


def _meta(
    cfg: config.Config, origin: hf_config.Origin, tokenizer_bytes: bytes
) -> checkpoint_meta.Meta:
    return checkpoint_meta.Meta(
        step=origin.step,
        data_fingerprint=origin.data_fingerprint,
        tokenizer_fingerprint=tokenizer_lib.Tokenizer(tokenizer_bytes).fingerprint,
        model=config.model_options(cfg),
    )
