"""The weights of another run as the first ones of this run (`train.init_from`)."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from keel_jax import config, errors
from keel_jax.config import options
from keel_jax.model import lm
from keel_jax.runtime import distributed
from keel_jax.training import ancestry, checkpoint, checkpoint_meta, trained

# The parameters that have a row or a column per token of the vocabulary.
_OF_TOKENS = ("embedding", "output")
# Names in a message, before "and … more".
_MAX_NAMED = 8


def load(
    cfg: config.Config, mesh: jax.sharding.Mesh, meta: checkpoint_meta.Meta, like: Any
) -> tuple[Any, list[dict]]:
    """The weights of `train.init_from` for every trial, and their ancestry.

    Args:
      meta: of this run.
      like: the run's random parameters, each [K, …] if there are K > 1 trials; with
        `train.init_partially` those that do not fit are taken from here.

    Returns:
      Parameters sharded as `like`, and what `ancestry.record` writes.

    Raises:
      UserError: the weights, or the tokenizer, are those of another model. With
        `train.init_partially`: not one of them fits.
    """
    workdir, step = parse_checkpoint(cfg.train.init_from)
    their_cfg = checkpoint.load_config(workdir)
    if not cfg.train.init_partially:
        _check_same_model(cfg, their_cfg)
    theirs, their_meta = trained.load_params(workdir, mesh, step)
    has_same_tokens = their_meta.tokenizer_fingerprint == meta.tokenizer_fingerprint
    if not (has_same_tokens or cfg.train.init_partially):
        raise errors.UserError(
            f"train.init_from={cfg.train.init_from} was trained with tokenizer "
            f"{their_meta.tokenizer_fingerprint[:12]}, data.path was made with "
            f"{meta.tokenizer_fingerprint[:12]}: prepare the data with that run's tokenizer.model, "
            "or train new rows for the tokens, with train.init_partially=True."
        )
    leave_out = () if has_same_tokens else _OF_TOKENS
    taken = _fitting(theirs, lm.shapes(cfg.model), leave_out)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    random = [name for name in names if name not in taken]
    assert cfg.train.init_partially or not random, random
    if cfg.train.init_partially:
        _say_partial(cfg, random, len(names))
    more = {"random": random} if random else {}
    ancestor = ancestry.entry("init_from", workdir, their_meta.step, their_cfg.model, **more)
    return _replace(like, taken), [*ancestry.read(workdir), ancestor]


def parse_checkpoint(path: str) -> tuple[epath.Path, int | None]:
    """(work directory, step) of "DIR" (step None: the newest) or of "DIR/checkpoints/STEP"."""
    match = re.fullmatch(rf"(.+)/{checkpoint.DIRECTORY}/(\d+)/?", path)
    return (epath.Path(match[1]), int(match[2])) if match else (epath.Path(path), None)


def _check_same_model(cfg: config.Config, theirs: config.Config) -> None:
    changed = {
        name: (getattr(theirs.model, name), getattr(cfg.model, name))
        for name, field in options.fields(config.ModelConfig).items()
        if options.change_of(field) is options.Change.MODEL
        and getattr(theirs.model, name) != getattr(cfg.model, name)
    }
    if changed:
        lines = "; ".join(f"model.{k}: {a!r} there, {b!r} here" for k, (a, b) in changed.items())
        raise errors.UserError(
            f"train.init_from={cfg.train.init_from} holds another model ({lines}). With "
            "train.init_partially=True the weights that fit would be taken."
        )


def _fitting(theirs: Any, like: Any, leave_out: Sequence[str]) -> dict[str, jax.Array]:
    """Of their parameters those that `like` has in the same shape, by their key paths."""
    shapes = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    named = [
        (jax.tree_util.keystr(path), path[0].key, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(theirs)
    ]
    return {
        name: leaf
        for name, top, leaf in named
        if shapes.get(name) == leaf.shape and top not in leave_out
    }


def _say_partial(cfg: config.Config, random: Sequence[str], num_all: int) -> None:
    source = cfg.train.init_from
    if len(random) == num_all:
        raise errors.UserError(
            f"train.init_from={source} holds no weights that fit this model: none of the "
            f"{num_all} parameters has its name and its shape there."
        )
    named = ", ".join(random[:_MAX_NAMED])
    more = len(random) - _MAX_NAMED
    others = f" random ones for {len(random)}: {named}" + (f" and {more} more" if more > 0 else "")
    if distributed.is_lead():
        print(
            f"{num_all - len(random)} of {num_all} parameters are taken from {source}"
            + (f",{others}" if random else "")
            + ".",
            flush=True,
        )


def _replace(like: Any, taken: dict[str, jax.Array]) -> Any:
    """`like` with some parameters replaced, in every trial, sharded as before."""

    def replace(tree, taken):
        def choose(path, leaf):
            new = taken.get(jax.tree_util.keystr(path))
            return leaf if new is None else jnp.broadcast_to(new, leaf.shape)

        return jax.tree_util.tree_map_with_path(choose, tree)

    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(replace, out_shardings=places, donate_argnums=0)(like, taken)
