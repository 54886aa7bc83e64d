"""The logs of a run, metrics.jsonl and TensorBoard's events: writing and reading them."""

import json
import math
import struct
import time
from collections.abc import Mapping, Sequence

from etils import epath
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import event_file_writer

from keel_jax.runtime import distributed, files

# Classes that protobuf creates at run time.
Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore
Summary = summary_pb2.Summary  # pyright: ignore

JSONL = "metrics.jsonl"
# TensorBoard's number for images with an alpha channel.
_RGBA = 4


class Logs:
    """One log per trial; as a context manager it closes them. Only the lead process writes."""

    def __init__(self, directories: Sequence[epath.Path], start_step: int):
        lead = distributed.is_lead()
        self._logs = [Log(directory, start_step) for directory in directories] if lead else []

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_):
        for log in self._logs:
            log.close()

    def write(self, trial: int, row: dict[str, float]) -> None:
        """Appends `row` to the log of `trial`."""
        if self._logs:
            self._logs[trial].write(row)

    def write_images(self, trial: int, step: int, images: Mapping[str, bytes]) -> None:
        """Adds PNG images, by tag, to TensorBoard's events of `trial`."""
        if self._logs:
            self._logs[trial].write_images(step, images)


class Log:
    """Appends rows to metrics.jsonl and to TensorBoard.

    Rows after `start_step`, which a killed run wrote after its last checkpoint, are removed, and
    TensorBoard is told to discard them: a resumed run has the log of one that was never stopped.
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
        began = SessionLog(status=SessionLog.START)
        self._add_event(start_step + 1, session_log=began)

    def write(self, row: dict[str, float]) -> None:
        """Writes one line; `row` has "step". Non-finite numbers become null, as JSON has none."""
        finite = {
            key: value if not isinstance(value, float) or math.isfinite(value) else None
            for key, value in row.items()
        }
        files.append_text(self._path, json.dumps(finite) + "\n")
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        self._add_event(int(row["step"]), summary=Summary(value=scalars))

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Writes to TensorBoard only; `images` are PNG files by their tags."""
        values = []
        for tag, content in images.items():
            # A PNG begins with a signature, then its header: width and height, big-endian.
            width, height = struct.unpack(">II", content[16:24])
            image = Summary.Image(
                width=width, height=height, colorspace=_RGBA, encoded_image_string=content
            )
            values.append(Summary.Value(tag=tag, image=image))
        self._add_event(step, summary=Summary(value=values))

    def _add_event(self, step: int, **content):
        event = Event(wall_time=time.time(), step=step, **content)
        self._events.add_event(event)

    def close(self) -> None:
        self._events.close()


def read(workdir: epath.PathLike) -> list[dict]:
    """The rows of a run's metrics.jsonl, without an incomplete last line; [] if there is none."""
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
