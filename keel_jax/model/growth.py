"""A deeper model from a trained one: which block each new block copies, and with which gains.

From N blocks to M > N, by one of three orders:

    stack       0 … N-1, 0 … N-1, …; if r blocks remain at the top, they are the upper r: N-r … N-1
    interleave  each block repeated in place: slot j holds block floor(j N / M)
    identity    all N blocks in their order, with M - N new ones between them that add nothing

The first two copy weights and change the function. `identity` keeps the function up to rounding or
the norms' epsilon, for every single-stream topology and ResiDual, because of three facts about

    x' = outer(alpha x + b branch(F(s inner(x)))):

1. F = 0 where `out` and `down` are 0, and branch(F) = 0 where the branch norm's gain is 0. The gain
   is preferred if it exists: the norm would amplify the first small update of `out` to size 1.
2. outer(alpha u) = u for any alpha if u has mean square 1 and the gains are 1. A trained norm with
   gain g outputs g u, which another norm would change. So the gain is moved: the block before the
   new ones gets gains of 1, and the last new one takes over its g.
3. Depth changes alpha (Keel: L = 2N), b (CompleteP: 1/L) and s (LayerNorm Scaling: 1/sqrt(l)). A
   block computes the same as before if its weights absorb the ratio of the constants:
   outer(alpha' x + (alpha'/alpha) F) = outer(alpha x + F), and likewise for b (`out`, `down`) and
   for s (the inner norm's gain).

docs/growing.md has the positions that each topology allows, and how alpha is chosen.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keel_jax import config, errors
from keel_jax.config import effects, topologies
from keel_jax.model import lm, residual
from keel_jax.model.arrays import Array

METHODS = ("stack", "interleave", "identity")
POSITIONS = ("spread", "end")
_SUBLAYER = {name: sublayer for sublayer, name in residual.SUBLAYERS.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """How M blocks are made from N."""

    old: config.ModelConfig
    new: config.ModelConfig
    method: str
    # int [M]: the old block that each new one copies.
    source: np.ndarray
    # bool [M]: whether it is a new block that adds nothing yet (`identity` only).
    inserted: np.ndarray

    @property
    def keeps_function(self) -> bool:
        return self.method == "identity"

    @property
    def alphas(self) -> tuple[float, float]:
        """The stream's weight in the last block, before and after."""
        before, after = (
            float(residual.topology(model).alpha[-1, residual.FFN])
            for model in (self.old, self.new)
        )
        return before, after


def plan(
    model: config.ModelConfig,
    num_blocks: int,
    method: str,
    *,
    position: str = "spread",
    keep_alpha: bool = False,
) -> Growth:
    """How `model` grows to `num_blocks`.

    Args:
      method: one of METHODS.
      position: where `identity` puts new blocks: one of POSITIONS, "spread" as evenly as the
        topology allows.
      keep_alpha: keep the old model's alpha, as `model.alpha`; else alpha is `model.alpha` if that
        is set, or what the topology defines for the new depth.

    Raises:
      UserError: not deeper, or the topology does not allow it; the message names a remedy.
    """
    n = model.num_blocks
    if num_blocks <= n:
        raise errors.UserError(
            f"num_blocks={num_blocks} is not more than the {n} blocks that the model has: choose "
            f"{n + 1} or more."
        )
    if method == "identity" and not topologies.row(model.topology).is_kept_by_zero:
        raise errors.UserError(
            f"method=identity: with model.topology={model.topology!r} a block changes what the "
            "next ones read even if its branches output 0. Use stack or interleave."
        )
    new = dataclasses.replace(model, num_blocks=num_blocks)
    if keep_alpha:
        if not effects.is_read("model.alpha", "model.topology", model.topology):
            raise errors.UserError(
                f"alpha=keep has no effect with model.topology={model.topology!r}, whose stream is "
                "not weighted: leave it out."
            )
        alpha = float(residual.topology(model).alpha[-1, residual.FFN])
        new = dataclasses.replace(new, alpha=alpha)
    if method == "identity":
        _check_cap(model, new)
    parts = [_order(model, new, old, slots, method, position) for old, slots in _parts(model, new)]
    source = np.concatenate(parts)
    inserted = np.append(False, source[1:] == source[:-1]) & (method == "identity")
    return Growth(old=model, new=new, method=method, source=source, inserted=inserted)


def grow(
    growth: Growth, params: Any, like: Any, run: Callable = lambda make, leaf, wanted: make(leaf)
) -> Any:
    """The new parameter tree from the old one, leaf by leaf.

    Args:
      like: the new model's tree, of anything with a shape.
      run: (make, leaf, wanted) -> make(leaf), with which the caller can shard the result like
        `wanted`, a leaf of `like`, and delete the old leaf. It is not called for leaves that do not
        change with depth.
    """

    def leaf_of(path, wanted):
        keys = tuple(key.key for key in path)
        node = params
        for key in keys:
            node = node.get(key) if node is not None else None
        if keys[0] != "block":
            return node
        if node is None:  # a gain that no block had: Keel's, with one block
            node = jnp.ones((growth.old.num_blocks, *wanted.shape[1:]), jnp.float32)
        grown = run(functools.partial(_leaf, growth, keys), node, wanted)
        assert grown.shape == wanted.shape, (keys, grown.shape, wanted.shape)
        return grown

    return jax.tree_util.tree_map_with_path(leaf_of, like)


def _check_cap(old: config.ModelConfig, new: config.ModelConfig) -> None:
    """Refuses to multiply branches that a cap would then cut."""
    before, after = residual.topology(old), residual.topology(new)
    if before.branch_cap is not None and (before.alpha[-1] != after.alpha[-1]).any():
        raise errors.UserError(
            f"method=identity: with alpha={after.alpha[-1, residual.FFN]:g} instead of "
            f"{before.alpha[-1, residual.FFN]:g} branches would have to be as much larger, and "
            f"model.branch_cap={old.branch_cap:g} would cut them. Use alpha=keep, or stack or "
            "interleave."
        )


# --- Orders --------------------------------------------------------------------------------------


def _parts(old: config.ModelConfig, new: config.ModelConfig) -> list[tuple[range, range]]:
    """(old blocks, new slots) of each stack that is grown separately: Mix-LN has two."""
    n, m = old.num_blocks, new.num_blocks
    if "mix_ln_post_fraction" not in topologies.row(old.topology).options:
        return [(range(n), range(m))]
    post_n, post_m = (
        int(residual.topology(model).outer_norm[:, residual.FFN].sum()) for model in (old, new)
    )
    for has, wants, name in ((post_n, post_m, "Post-LN"), (n - post_n, m - post_m, "Pre-LN")):
        if wants and not has:
            raise errors.UserError(
                f"model.mix_ln_post_fraction={old.mix_ln_post_fraction} makes {wants} of {m} "
                f"blocks {name}, and there is no {name} block among the {n} to copy: "
                "choose another num_blocks."
            )
    return [(range(post_n), range(post_m)), (range(post_n, n), range(post_m, m))]


def _order(old, new, blocks: range, slots: range, method: str, position: str) -> np.ndarray:
    """The old block that each of `slots` copies; int [len(slots)]."""
    n, m = len(blocks), len(slots)
    if method == "stack":
        whole, rest = divmod(m, max(1, n))
        return np.concatenate([np.tile(blocks, whole), blocks[n - rest :]]).astype(int)
    if method == "interleave":
        return np.asarray(blocks, int)[np.arange(m) * n // max(1, m)]
    if m == n:
        return np.asarray(blocks, int)
    places = _places(old, new, blocks, slots)
    if position == "end":
        places = places[-1:]
    extra = dict.fromkeys(blocks, 0)
    for index, place in enumerate(places):
        extra[place] = (index + 1) * (m - n) // len(places) - index * (m - n) // len(places)
    return np.repeat(np.asarray(blocks, int), [1 + extra[block] for block in blocks])


def _places(old, new, blocks: range, slots: range) -> list[int]:
    """The old blocks after which a block that adds nothing leaves the stream unchanged."""
    if not residual.topology(new).outer_norm[slots[-1]].any():
        return list(blocks)
    # New blocks norm the stream, so it must be the output of a norm.
    is_normed = residual.topology(old).outer_norm[:, residual.FFN]
    places = [block for block in blocks if is_normed[block]]
    if places:
        return places
    last = old.num_blocks - 1
    if not lm.has_final_norm(old):
        raise errors.UserError(
            f"No new block leaves this stream unchanged: model.topology={old.topology!r} norms it "
            f"within a block, it leaves none of the {len(blocks)} blocks normed, and there is no "
            "final norm to remove the scale. Use --method=interleave or --method=stack, which "
            "change the function."
        )
    return [last]  # the final norm removes the same scale as one more norm


# --- Weights and gains ---------------------------------------------------------------------------


def _leaf(growth: Growth, path: tuple[str, ...], leaf: Array) -> Array:
    """[N, …] -> [M, …]; `path` as in ("block", "attention", "out")."""
    grown = leaf[growth.source]
    _, kind, name = path
    multiply, put = _changes(growth, kind, name)
    along = (slice(None), *(None,) * (leaf.ndim - 1))
    if (multiply != 1).any():
        grown = jnp.asarray(multiply[along]) * grown
    replaced = ~np.isnan(put)
    if replaced.any():
        grown = jnp.where(replaced[along], np.where(replaced, put, 0)[along], grown)
    return grown


def _changes(growth: Growth, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The factor of a leaf of the new blocks, and its replacement where that is not NaN; [M]."""
    m, sublayer = growth.new.num_blocks, _SUBLAYER[kind]
    multiply, put = np.ones(m, np.float32), np.full(m, np.nan, np.float32)
    old, new = residual.topology(growth.old), residual.topology(growth.new)

    def of(constant):
        """A constant's value for each new block: in the copied block, and in the new one."""
        return getattr(old, constant)[growth.source, sublayer], getattr(new, constant)[:, sublayer]

    if growth.method != "identity":
        if name in ("inner_norm", "outer_norm"):
            # A copy of block 0 may be at a position with a norm that block 0 does not have.
            was, is_now = of(name)
            put[is_now & ~was] = 1
        return multiply, put

    inserted = growth.inserted
    followed = np.append(inserted[1:], False)
    if name == residual.LAST_MATRIX[kind]:
        (alpha_was, alpha), (b_was, b) = of("alpha"), of("branch_scale")
        multiply = np.asarray(alpha / alpha_was * b_was / b, np.float32)
        if not new.has("branch_norm", sublayer):
            multiply[inserted] = 0
    elif name == "branch_norm":
        multiply[inserted] = 0
    elif name == "inner_norm":
        was, is_now = of("input_scale")
        multiply = np.asarray(was / is_now, np.float32)
    elif name == "outer_norm":
        # outer(alpha u) has mean square alpha^2 / (alpha^2 + epsilon) for a u of mean square 1.
        alpha = new.alpha[:, sublayer].astype(float)
        unit = np.sqrt(1 + growth.new.norm_epsilon / alpha**2)
        put[inserted] = unit[inserted]
        if kind == "ffn":
            put[followed] = np.where(inserted, unit, 1)[followed]
            takes_over = inserted & ~followed & old.outer_norm[growth.source, residual.FFN]
            put[takes_over] = np.nan
            multiply[takes_over] = unit[takes_over]
    return multiply, put
