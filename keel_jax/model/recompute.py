"""A scan over depth that saves what a plan says for the backward pass, and recomputes the rest.

    plan            saved throughout                   saved for one segment at a time
    none            everything
    block           each block's input
    segments (s,)   each segment's input, N / s        its s blocks' inputs
    segments (s, t) each segment's input, N / s        inputs of s / t segments, then of t blocks
    reversible      see `reversible`; where that is not possible (a program that reads the
                    stream, `telemetry`), segments of the length of its stretches

"Block's input" stands for what `save` names: it may be more (NAMES), or everything. Each level of
segments runs the forward pass once more, so for one forward pass each, memory falls from N to about
2 sqrt(N) and 3 cbrt(N). Any N is allowed: the remaining blocks form a shorter segment at the end.
The results do not depend on the plan: each block is the same program, in the same order.

This module is independent of the model: it handles a body, a carry, and a tree of arrays stacked
along depth.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from keel_jax import config

# What may be saved of a block besides its input, by `config.RecomputeConfig.save`, with the names
# that `layers` gives: with "attention" the attention kernel runs only once; with "mlp", so do the
# multiplications with the matrices that read the stream.
_ATTENTION = ("query", "key", "value", "attention")
NAMES = {
    "carry": (),
    "attention": _ATTENTION,
    "mlp": (*_ATTENTION, "gate", "up"),
}
_INPUT = "depth_input"
# A segment size that does not divide N costs a copy of the last blocks' weights and a second
# program, so it is chosen only if it reduces the memory of carries by this factor.
_REMAINDER = 1.25


def scan(body: Callable, carry: Any, rows: Any, recompute: config.RecomputeConfig) -> Any:
    """`jax.lax.scan(body, carry, rows)` with the same results and another memory-time trade-off.

    Args:
      body: (carry, row of `rows`) -> (carry, outputs); pure.
      rows: a tree of arrays [N, …]; floating leaves get their gradients in this shape.
      recompute: the plan; "auto", which only a planner can resolve, is treated as "block".

    Returns:
      The last carry, and the outputs [N, …], for any plan.
    """
    num_blocks = len(jax.tree.leaves(rows)[0])
    if recompute.plan == "none":
        return jax.lax.scan(body, carry, rows)
    sizes = segment_sizes(recompute, num_blocks)
    if recompute.save != "all":
        body = _remembering(
            body, NAMES[recompute.save], recompute.offload and not sizes, recompute.offload_saved
        )
    return _segments(body, carry, rows, sizes, recompute.offload)


def segment_sizes(recompute: config.RecomputeConfig, num_blocks: int) -> tuple[int, ...]:
    """Blocks per segment on each level, outermost first; () without segments.

    A 0 is replaced by the size that keeps the fewest carries at a time; if a depth is too small to
    be divided again, a level is omitted.
    """
    if recompute.plan == "reversible":  # its stretches, and the segments of a program with probes
        return _best((recompute.anchor_blocks,), num_blocks)[1]
    if recompute.plan != "segments":
        return ()
    return _best(recompute.segment_blocks, num_blocks)[1]


def kept_carries(sizes: tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """Carries that are in memory at a time on each level, blocks' inputs last."""
    lengths = (num_blocks, *sizes)
    outer = [-(-n // s) for n, s in zip(lengths, sizes, strict=False)]
    return (*outer, lengths[-1])


def describe(recompute: config.RecomputeConfig, num_blocks: int) -> str:
    """The plan in a few words; `num_blocks` is the number of one stage."""
    text = recompute.plan
    if sizes := segment_sizes(recompute, num_blocks):
        text += f" of {' of '.join(map(str, sizes))} blocks"
    if recompute.plan == "reversible":
        text += (
            f" (experimental), anchors every {recompute.anchor_blocks} blocks, "
            f"{recompute.fixed_point_iterations} fixed-point iteration(s), bound "
            f"{recompute.error_bound:g}"
        )
    elif recompute.plan != "none":
        text += f", save {recompute.save}" + (", offloaded" if recompute.offload else "")
    return text


@functools.cache
def _best(asked: tuple[int, ...], num_blocks: int) -> tuple[float, tuple[int, ...]]:
    """(carries kept, with a penalty for remainders; the sizes)."""
    undivided = (float(num_blocks), ())
    if not asked:
        return undivided
    if asked[0]:
        sizes = (asked[0],) if asked[0] < num_blocks else ()
    else:
        # With k levels of segments the best size is about N ^ (k / (k + 1)).
        middle = num_blocks ** (len(asked) / (len(asked) + 1))
        most = min(num_blocks - 1, math.ceil(3 * middle))
        sizes = range(max(2, math.floor(middle / 3)), most + 1)
    options = []
    for size in sizes:
        inside, rest = _best(asked[1:], size)
        kept = -(-num_blocks // size) + inside
        options.append((kept * (_REMAINDER if num_blocks % size else 1), (size, *rest)))
    return min(options, default=undivided)


def _segments(body, carry, rows, sizes, offload):
    """The scan in segments of `sizes[0]` blocks, each divided into segments of the other sizes."""
    if not sizes:
        return jax.lax.scan(body, carry, rows)
    size, *inner = sizes

    def segment(carry, rows):
        return _segments(body, carry, rows, tuple(inner), False)

    count = len(jax.tree.leaves(rows)[0]) // size
    whole = jax.tree.map(lambda x: x[: count * size].reshape(count, size, *x.shape[1:]), rows)
    carry, outputs = jax.lax.scan(_remembering(segment, (), offload), carry, whole)
    outputs = jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:]), outputs)
    rest = jax.tree.map(lambda x: x[count * size :], rows)
    if not len(jax.tree.leaves(rest)[0]):
        return carry, outputs
    # Outside a loop nothing else prevents the compiler from merging the two computations.
    carry, last = _remembering(segment, (), offload, prevent_cse=True)(carry, rest)
    join = lambda one, other: jax.numpy.concatenate([one, other])  # noqa: E731
    return carry, jax.tree.map(join, outputs, last)


def _remembering(
    body,
    names: tuple[str, ...],
    offload: bool,
    offload_names: bool = False,
    *,
    prevent_cse: bool = False,
):
    """`body`, of which the carry and the values with these names are saved, the rest recomputed.

    With `offload` the carry is kept in the host's memory, with `offload_names` also the named
    values.
    """
    policies = jax.checkpoint_policies
    if not offload:
        policy = policies.save_only_these_names(*names) if names else None
        return jax.checkpoint(body, prevent_cse=prevent_cse, policy=policy)

    def named(carry, row):
        return body(checkpoint_name(carry, _INPUT), row)

    policy = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[] if offload_names else names,
        names_which_can_be_offloaded=[_INPUT, *names] if offload_names else [_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(named, prevent_cse=prevent_cse, policy=policy)
