"""Where a non-finite step went wrong: the first bad sub-layer, and what grew before it.

In the forward pass, sub-layers are checked from the first up: in each the stream at its input, then
the branch. In the backward pass, from the last down: the gradients of its parameters, then the
cotangent of the stream at its input. "Bad" means not finite or, if every number is finite, out of
line: more than 100 times its value in the previous record.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from keel_jax.model import residual

# Growth within one interval between records that counts as out of line. Guess: records of healthy
# runs of this project move by less than 10 after the warm-up.
_OUT_OF_LINE = 100.0
# Records before the diverging step over which growth is reported, and of how many statistics.
_WINDOW, _NUM_GROWN = 4, 6
_GROWING = (
    "stream_rms",
    "branch_rms",
    "branch_ratio",
    "rotation_radians",
    "cotangent_rms",
    "gradient_rms",
    "update_rms",
    "param_rms",
)


def make_report(records: Mapping[str, np.ndarray], loss: float, grad_norm: float) -> dict:
    """The divergence in the last record, as it is written to divergence.json.

    Args:
      records: of `telemetry_records.load`; the last one is of the diverging step.
      loss: the step's loss, in nats per token.
      grad_norm: the step's gradient norm.

    Returns:
      "step"; "num_blocks", N; "loss_is_finite", "grad_norm_is_finite"; "forward" and "backward",
      the first bad place (None: none is bad): "block" (from 0), "sublayer", "what", "value" (None:
      not finite) and "message"; "grew": a list of "statistic", "block", "sublayer", "from_step",
      "from", "to", "factor", largest factor first; "text", the report in sentences.
    """
    report = {
        "step": int(records["step"][-1]),
        "num_blocks": num_blocks(records),
        "loss_is_finite": math.isfinite(loss),
        "grad_norm_is_finite": math.isfinite(grad_norm),
        "forward": _first_bad(_forward(records), _leaving(records)),
        "backward": _first_bad(_backward(records)),
        "grew": _grown(records),
    }
    return report | {"text": _text(report, loss, grad_norm, records)}


def num_blocks(records: Mapping[str, np.ndarray]) -> int:
    """N of a run's records."""
    return records["stream_rms"].shape[1]


# A number to check: (block, sub-layer, what, its values over the records [R]).
_Suspect = tuple[int, int, str, np.ndarray]


def _forward(records) -> Iterator[_Suspect]:
    for block in range(num_blocks(records)):
        for sublayer in range(2):
            yield block, sublayer, "stream", records["stream_rms"][:, block, sublayer]
            yield block, sublayer, "branch", records["branch_rms"][:, block, sublayer]


def _leaving(records) -> Iterator[_Suspect]:
    """The last sub-layer's output: the angle is not finite if the stream after it is not."""
    last = num_blocks(records) - 1
    yield last, 1, "output", records["rotation_radians"][:, last, 1]


def _backward(records) -> Iterator[_Suspect]:
    for block in reversed(range(num_blocks(records))):
        for sublayer in (1, 0):
            prefix = f"gradient_rms/{residual.SUBLAYERS[sublayer]}/"
            for name in records:
                if name.startswith(prefix):
                    what = f"gradient of {name.removeprefix(prefix)}"
                    yield block, sublayer, what, records[name][:, block]
            yield block, sublayer, "cotangent", records["cotangent_rms"][:, block, sublayer]


def _first_bad(
    suspects: Iterable[_Suspect], only_if_not_finite: Iterable[_Suspect] = ()
) -> dict | None:
    """The first that is not finite, or else the first that is out of line, or None."""
    suspects = list(suspects)
    for block, sublayer, what, values in [*suspects, *only_if_not_finite]:
        if not np.isfinite(values[-1]):
            return _place(block, sublayer, what, values)
    for block, sublayer, what, values in suspects:
        if len(values) > 1 and 0 < values[-2] * _OUT_OF_LINE < values[-1]:
            return _place(block, sublayer, what, values)
    return None


def _place(block: int, sublayer: int, what: str, values) -> dict:
    value = float(values[-1])
    message = f"block {block}, {_name(sublayer)}: {_WORDS.get(what, what)} {value:.3g}"
    if what == "stream":
        # Computed by the previous sub-layer, whose own branch was fine, or by the embedding.
        before = 2 * block + sublayer - 1
        message += ", handed on by " + (
            f"the residual sum or outer norm of block {before // 2}, {_name(before % 2)}"
            if before >= 0
            else "the embedding"
        )
    if len(values) > 1:
        message += f" ({float(values[-2]):.3g} in the record before)"
    return {
        "block": block,
        "sublayer": residual.SUBLAYERS[sublayer],
        "what": what,
        "value": value if math.isfinite(value) else None,
        "message": message,
    }


_WORDS = {
    "stream": "RMS of the stream that enters it",
    "branch": "RMS of the branch's output",
    "output": "rotation of the stream",
    "cotangent": "RMS of the cotangent of the stream that entered it",
}


def _name(sublayer: int) -> str:
    return ("attention", "FFN")[sublayer]


def _grown(records) -> list[dict]:
    """Per statistic, where it grew most from a few records ago to its last finite value."""
    first = max(0, len(records["step"]) - 1 - _WINDOW)
    if first == len(records["step"]) - 1:
        return []
    grown = []
    for name, values in records.items():
        if name.partition("/")[0] not in _GROWING:
            continue
        begin, before, last = (values[index].astype(np.float64) for index in (first, -2, -1))
        end = np.where(np.isfinite(last), last, before)
        usable = np.isfinite(begin) & np.isfinite(end) & (begin > 0)
        factor = np.where(usable, end / np.where(usable, begin, 1.0), 0.0)
        place = [int(index) for index in np.unravel_index(factor.argmax(), factor.shape)]
        if factor[tuple(place)] <= 1:
            continue
        block, *of_block = place
        sublayer = residual.SUBLAYERS[of_block[0]] if of_block else name.split("/")[1]
        grown.append(
            {
                "statistic": name,
                "block": block,
                "sublayer": sublayer,
                "from_step": int(records["step"][first]),
                "from": float(begin[*place]),
                "to": float(end[*place]),
                "factor": float(factor[*place]),
            }
        )
    return sorted(grown, key=lambda line: -line["factor"])[:_NUM_GROWN]


def _text(report: dict, loss: float, grad_norm: float, records) -> str:
    forward, backward = report["forward"], report["backward"]
    lines = [
        f"Diverged in step {report['step']} (loss {loss:.4g}, gradient norm {grad_norm:.3g}; "
        f"{num_blocks(records)} blocks, counted from 0)."
    ]
    if forward:
        lines.append(f"Forward, the first bad place from below is {forward['message']}.")
    else:
        lines.append(
            "Forward, every block is in line"
            + ("." if report["loss_is_finite"] else ": the loss, or the logits, failed after them.")
        )
    if backward:
        lines.append(f"Backward, the first bad place from above is {backward['message']}.")
        if not report["loss_is_finite"]:
            lines.append("(The gradient of a loss that is not finite is not finite either.)")
    else:
        lines.append("Backward, every block is in line.")
    if report["grew"]:
        lines.append(f"What grew most since step {report['grew'][0]['from_step']}, and where:")
        lines += [
            f"  {line['statistic']}, block {line['block']}, {line['sublayer']}: "
            f"{line['from']:.3g} -> {line['to']:.3g} (x {line['factor']:.3g})"
            for line in report["grew"]
        ]
    elif len(records["step"]) == 1:
        lines.append("No step before it was recorded.")
    else:
        lines.append("No number that is still finite has grown.")
    return "\n".join(lines)
