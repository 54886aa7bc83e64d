"""A scan over depth of which the backward pass keeps what a plan says, and computes the rest again.

    plan            kept throughout                    kept of one segment at a time
    none            everything
    block           each block's input
    segments (s,)   each segment's input, N / s        its s blocks' inputs
    segments (s, t) each segment's input, N / s        inputs of s / t segments, then of t blocks
    reversible      not here, but in `reversible`; where it cannot be (a program that looks at the
                    stream, `telemetry`), segments of its stretches

"Block's input" stands for what `save` names: it may be more (NAMES), or everything. Every level of
segments runs the forward pass once more, so memory of N falls to about 2 sqrt(N), 3 cbrt(N), for
one forward pass each. Any N: what s leaves over is a shorter segment at the end. The numbers do not
depend on the plan: each block is the same program, in the same order.

Nothing here knows a model: a body, a carry, and a tree of arrays stacked along depth.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from keel_jax import config

# What may be kept of a block beside its input, by `config.RecomputeConfig.save`, in the names that
# `layers` gives: with "attention" its kernel runs once; with "mlp", matrices that lead away
# from the stream multiply once, too.
_ATTENTION = ("query", "key", "value", "attention")
NAMES = {
    "carry": (),
    "attention": _ATTENTION,
    "mlp": (*_ATTENTION, "gate", "up"),
}
_INPUT = "depth_input"
# A segment that does not divide N costs a copy of the last blocks' weights, and a second program:
# taken only where the memory of carries is this much less.
_REMAINDER = 1.25


def scan(body: Callable, carry: Any, rows: Any, recompute: config.RecomputeConfig) -> Any:
    """`jax.lax.scan(body, carry, rows)`: the same numbers, another trade of memory for time.

    Args:
      body: (carry, row of `rows`) -> (carry, outputs); pure.
      rows: a tree of arrays [N, …]; floating leaves get their gradients in this shape.
      recompute: the plan; "auto", which only a planner can resolve, is "block" here.

    Returns:
      The last carry, and the outputs [N, …], whatever the plan.
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
    """Blocks of a segment on each level, outermost first; () without segments.

    A 0 is chosen so that the least carries are kept at a time; where a depth is too small to be
    divided again, a level is left out.
    """
    if recompute.plan == "reversible":  # its stretches; and segments of a program with probes
        return _best((recompute.anchor_blocks,), num_blocks)[1]
    if recompute.plan != "segments":
        return ()
    return _best(recompute.segment_blocks, num_blocks)[1]


def kept_carries(sizes: tuple[int, ...], num_blocks: int) -> tuple[int, ...]:
    """Carries that are kept at a time on each level, blocks' inputs last."""
    lengths = (num_blocks, *sizes)
    outer = [-(-n // s) for n, s in zip(lengths, sizes, strict=False)]
    return (*outer, lengths[-1])


def describe(recompute: config.RecomputeConfig, num_blocks: int) -> str:
    """The plan in a few words; `num_blocks` are one stage's."""
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
    """(carries kept, with a fine for remainders; the sizes)."""
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
    """The scan in segments of `sizes[0]` blocks, each of them in segments of the other sizes."""
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
    # Outside of a loop nothing else keeps the compiler from merging the two computations.
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
    """`body`, of which the backward pass finds its carry and what is named so; the rest again.

    With `offload` the carry waits in the host's memory, with `offload_names` what is named as well.
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
