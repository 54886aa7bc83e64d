"""The numbers of a run, with units in their names: metrics.jsonl, TensorBoard, the terminal."""

import json
import math
import struct
import sys
import time
from collections.abc import Mapping, Sequence

import rich.progress
from etils import epath
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import event_file_writer

from keel_jax import config
from keel_jax.runtime import distributed, files

JSONL = "metrics.jsonl"
# Vectors [N] of a step with the plan "reversible": here their largest entries, and whole in the
# telemetry's records.
REVERSAL = ("reversal_error", "reversal_step")
# TensorBoard's number for images with an alpha channel.
_RGBA = 4


def loss_metrics(prefix: str, sums: dict[str, float], bytes_per_token: float) -> dict[str, float]:
    """Averages of `loss.cross_entropy_sums`, divided here and nowhere before.

    Args:
      prefix: "train" or "eval".
      sums: of one lane, as Python floats.
      bytes_per_token: of the text the tokens stand for; bits per byte = nats per token / ln 2 /
        bytes per token.
    """
    weight = sums["weight"] or math.nan
    nats = sums["nats"] / weight
    return {
        f"{prefix}/loss_nats_per_token": nats,
        f"{prefix}/bits_per_byte": nats / math.log(2) / bytes_per_token,
        f"{prefix}/perplexity": math.exp(min(nats, 700.0)),
        f"{prefix}/accuracy": sums["correct"] / weight,
        f"{prefix}/log_z_rms": math.sqrt(sums["log_z_squared"] / weight),
    }


def reversal_metrics(sums: Mapping) -> dict[str, float]:
    """What the plan "reversible" tells of a step (`reversible.summary`); else nothing."""
    if "reversal_fallbacks" not in sums:
        return {}
    largest = {f"train/{name}_max": float(sums[name].max()) for name in REVERSAL}
    return {**largest, "train/reversal_fallbacks": sums["reversal_fallbacks"]}


def speed_metrics(
    cfg: config.Config, step_seconds: float, data_wait_fraction: float, peak_flops: float | None
) -> dict[str, float]:
    """Speed over the steps since the last line.

    Model FLOPs leave recomputation out (`ModelConfig.flops_per_token`). MFU divides by the chips'
    bf16 peak, with causal attention counted at half and, `_full_attention`, in full; both are
    absent where the chip is not known.

    Args:
      peak_flops: FLOP/s of all devices together, or None.
    """
    tokens_per_second = cfg.train.tokens_per_step * cfg.num_lanes / step_seconds
    flops = tokens_per_second * cfg.model.flops_per_token(cfg.train.seq_len)
    metrics = {
        "time/step_seconds": step_seconds,
        "time/tokens_per_second": tokens_per_second,
        "time/data_wait_fraction": data_wait_fraction,
        "time/model_flops_per_second": flops,
    }
    if peak_flops:
        full = tokens_per_second * cfg.model.flops_per_token(cfg.train.seq_len, causal=False)
        metrics["time/mfu"] = flops / peak_flops
        metrics["time/mfu_full_attention"] = full / peak_flops
    return metrics


class Logs:
    """One log per lane; as a context manager it closes them. Only the lead process writes."""

    def __init__(self, directories: Sequence[epath.Path], start_step: int):
        lead = distributed.is_lead()
        self._logs = [Log(directory, start_step) for directory in directories] if lead else []

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_):
        for log in self._logs:
            log.close()

    def write(self, lane: int, row: dict[str, float]) -> None:
        """Appends `row` to the log of `lane`."""
        if self._logs:
            self._logs[lane].write(row)

    def write_images(self, lane: int, step: int, images: Mapping[str, bytes]) -> None:
        """Adds PNG images, by tag, to TensorBoard's events of `lane`."""
        if self._logs:
            self._logs[lane].write_images(step, images)


class Log:
    """Appends rows to metrics.jsonl and to TensorBoard.

    Rows after `start_step`, which a killed run wrote beyond its last checkpoint, are removed, and
    TensorBoard is told to forget them: the log of a resumed run is that of a run never stopped.
    """

    def __init__(self, workdir: epath.PathLike, start_step: int):
        self._path = epath.Path(workdir) / JSONL
        if self._path.exists():
            rows = [json.dumps(row) for row in read(workdir) if row["step"] <= start_step]
            kept = "".join(row + "\n" for row in rows)
            if kept != self._path.read_text():
                new = self._path.with_name(f".{JSONL}")
                new.write_text(kept)
                new.replace(self._path)
        self._events = event_file_writer.EventFileWriter(str(epath.Path(workdir) / "tensorboard"))
        began = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add_event(start_step + 1, session_log=began)

    def write(self, row: dict[str, float]) -> None:
        """One line; `row` holds "step". A non-finite number becomes null, as JSON has none."""
        finite = {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in row.items()
        }
        files.append_text(self._path, json.dumps(finite) + "\n")
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        self._add_event(row["step"], summary=summary_pb2.Summary(value=scalars))

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """To TensorBoard alone; `images` are PNG files by their tags."""
        values = []
        for tag, content in images.items():
            # A PNG begins with a signature, then its header: width and height, big-endian.
            width, height = struct.unpack(">II", content[16:24])
            image = summary_pb2.Summary.Image(
                width=width, height=height, colorspace=_RGBA, encoded_image_string=content
            )
            values.append(summary_pb2.Summary.Value(tag=tag, image=image))
        self._add_event(step, summary=summary_pb2.Summary(value=values))

    def _add_event(self, step: int, **content):
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._events.add_event(event)

    def close(self):
        self._events.close()


def read(workdir: epath.PathLike) -> list[dict]:
    """The rows of a run's metrics.jsonl, a torn last line left out; empty if there is none."""
    path = epath.Path(workdir) / JSONL
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def is_evaluated(workdir: epath.PathLike, step: int) -> bool:
    """Whether the log holds a validation of `step`."""
    return any(row["step"] == step and "eval/loss_nats_per_token" in row for row in read(workdir))


class Progress:
    """What a person sees: a bar on a terminal, a line per logged step elsewhere."""

    def __init__(self, num_steps: int, start_step: int, *, visible: bool):
        self._visible = visible
        self._bar = None
        if visible and sys.stdout.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step"),
                rich.progress.MofNCompleteColumn(),
                rich.progress.BarColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[told]}"),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=num_steps, completed=start_step, told="")
        self._num_steps = num_steps

    def step(self, step: int, told: str | None) -> None:
        """Moves on; `told` replaces the text (None: keep it)."""
        if self._bar:
            self._bar.update(self._task, completed=step, **({"told": told} if told else {}))
        elif self._visible and told:
            print(f"step {step}/{self._num_steps}  {told}", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()
