"""The logs of a run, metrics.jsonl and TensorBoard's events: writing and reading them."""

import collections
import itertools
import struct
import time
import typing
from collections.abc import Callable, Mapping, Sequence

from etils import epath
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer import event_file_writer

from keel_jax import config, errors
from keel_jax.runtime import best_effort, distributed, files
from keel_jax.training import metric_rows, status

# Classes that protobuf creates at run time.
Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore
Summary = summary_pb2.Summary  # pyright: ignore

JSONL = "metrics.jsonl"
# TensorBoard's number for images with an alpha channel.
_RGBA = 4
# What every row of a train step has.
_LOSS, _GRAD_NORM = "train/loss_nats_per_token", "train/grad_norm"
# Rows that wait in memory while a disk is full: some megabytes.
_MAX_UNWRITTEN = 10_000


class Logs:
    """One log per trial; as a context manager it closes them. Only the lead process writes."""

    def __init__(
        self,
        directories: Sequence[epath.Path],
        ids: Sequence[str],
        start_step: int,
        options: config.TrainConfig,
        trial_steps: Sequence[int] | None = None,
    ):
        """`ids` are those of `trials.log_ids`.

        `trial_steps`: the steps that each trial has taken by `start_step`; None: all of them.
        """
        steps = trial_steps or [start_step] * len(directories)
        logs = zip(directories, ids if distributed.is_lead() else (), steps, strict=False)
        self._logs = [
            Log(directory, run_id, start_step, options.log_every_steps, own_steps)
            for directory, run_id, own_steps in logs
        ]

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
    Damaged lines, and those of other runs, are kept in metrics.jsonl.damaged. A warning says if
    rows before `start_step` are missing at the end.

    What cannot be written is named once. Rows are written later if that becomes possible;
    TensorBoard's events are not.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        run_id: str,
        start_step: int,
        log_every_steps: int,
        own_steps: int | None = None,
    ):
        """`own_steps`: after which the trial has ended, if that is before `start_step`."""
        self._own_steps = start_step if own_steps is None else own_steps
        self._path, self._run_id = epath.Path(workdir) / JSONL, run_id
        self._start_step, self._log_every_steps = start_step, log_every_steps
        self._is_cut = False
        # Lines that no disk has taken yet.
        self._unwritten = collections.deque(maxlen=_MAX_UNWRITTEN)
        self._append_unwritten()
        directory = str(epath.Path(workdir) / "tensorboard")
        self._tensorboard, self._events = directory, None
        with best_effort.writing(directory):
            self._events = event_file_writer.EventFileWriter(directory)
        began = SessionLog(status=SessionLog.START)
        self._add_event(start_step + 1, session_log=began)

    def _cut(self):
        """Removes later rows and sets damaged lines aside, unless that is done."""
        if self._is_cut:
            return
        content = self._path.read_bytes() if self._path.exists() else b""
        scanned = metric_rows.scan(content, self._run_id)
        if scanned.damaged:
            lines = [line for _, line, _ in scanned.damaged]
            best_effort.append_damaged(self._path, lines, scanned.describe_damage())
        self._say_what_is_missing(scanned.rows)
        kept = [line for line, row in scanned.intact if row["step"] <= self._start_step]
        new = b"".join(line + b"\n" for line in kept)
        if new != content:
            files.write_bytes(self._path, new)
        self._is_cut = True

    def _say_what_is_missing(self, rows: Sequence[dict]):
        """Rows are on disk before the checkpoint of their step, unless the file was cut since."""
        if not self._start_step:
            return
        if not rows:
            best_effort.warn(
                f"{self._path} holds no row of the {self._start_step} steps before: it begins anew."
            )
            return
        trained = [row for row in rows if _LOSS in row]
        steps = [row["step"] for row in trained]
        last = steps[-1] if steps else 0
        # Rows may have been farther apart until now: the option can change.
        apart = max([self._log_every_steps, *(b - a for a, b in itertools.pairwise(steps[-2:]))])
        # A trial that diverged, of several, has no rows from then on.
        has_diverged = bool(trained) and None in (
            trained[-1][_LOSS],
            trained[-1].get(_GRAD_NORM, 0),
        )
        if last <= self._own_steps - apart and not has_diverged:
            best_effort.warn(
                f"{self._path} ends at step {last}, but its rows up to step {self._start_step} "
                "were written before that step's checkpoint: the file was cut, and they are lost."
            )

    def write(self, row: dict[str, float]) -> None:
        """Writes one line; `row` has "step". Non-finite numbers become null, as JSON has none."""
        self._unwritten.append(metric_rows.to_line(row, self._run_id))
        self._append_unwritten()
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step"
        ]
        self._add_event(int(row["step"]), summary=Summary(value=scalars))

    def _append_unwritten(self):
        with best_effort.writing(self._path):
            self._cut()
            if self._unwritten:
                files.append_text(self._path, "".join(self._unwritten))
                self._unwritten.clear()

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
        self._to_tensorboard(lambda events: events.add_event(event))

    def close(self) -> None:
        self._append_unwritten()
        self._to_tensorboard(lambda events: events.close())

    def _to_tensorboard(self, action: Callable[[event_file_writer.EventFileWriter], None]):
        """Does it unless an earlier write failed: after that the writer has no thread."""
        events, self._events = self._events, None
        if events is not None:
            with best_effort.writing(self._tensorboard):
                action(events)
                self._events = events


def read(workdir: epath.PathLike) -> list[dict]:
    """The rows of a run's metrics.jsonl; [] if there is none.

    Damaged lines are left out and named once, an unfinished last line is left out. Rows of another
    run than status.json's are named, and not left out: status.json may be what is out of place.
    """
    path = epath.Path(workdir) / JSONL
    scanned = metric_rows.scan(path.read_bytes() if path.exists() else b"")
    if scanned.damaged:
        best_effort.warn(f"{path}, {scanned.describe_damage()}: left out.")
    if what := _out_of_place(path, scanned):
        best_effort.warn(f"{path}, {what}.")
    return scanned.rows


def is_unfinished(workdir: epath.PathLike) -> bool:
    """Whether the last line of metrics.jsonl is not whole, as while it is written."""
    path = epath.Path(workdir) / JSONL
    return bool(metric_rows.scan(path.read_bytes() if path.exists() else b"").unfinished)


def read_whole(workdir: epath.PathLike) -> list[dict]:
    """The rows of a run that has ended, for results that are computed from all of them.

    Raises:
      UserError: there is no log, a part of it is damaged, or it is of another run than status.json.
    """
    path = epath.Path(workdir) / JSONL
    if not path.exists():
        raise errors.UserError(f"{path} does not exist: restore it, or run it again elsewhere.")
    scanned = metric_rows.scan(path.read_bytes())
    if scanned.damaged or scanned.unfinished or not scanned.intact:
        what = scanned.describe_damage() if scanned.damaged else "its end is missing"
        raise errors.UserError(
            f"{path}, {what}: results cannot be computed from the rest. Restore it, or remove "
            f"{path.parent} and run it again."
        )
    if what := _out_of_place(path, scanned):
        raise errors.UserError(
            f"{path}, {what}: restore it, or remove {path.parent} and run it again."
        )
    return scanned.rows


def _out_of_place(path: epath.Path, scanned: metric_rows.Scanned) -> str:
    """How the log contradicts the status.json beside it; "" if it does not."""
    run_id = status.run_id(path.parent)
    others = sorted(set(scanned.run_ids) - {run_id})
    if not run_id or not others:
        return ""
    return (
        f"it has rows of run {', '.join(others[:3])}, and {status.FILE} is of run {run_id}: one of "
        "the two files is another run's"
    )


class Logged(typing.NamedTuple):
    """Per trial, what of a step is in its log."""

    is_evaluated: list[bool]
    is_examined: list[bool]


def logged_at(directories: Sequence[epath.Path], step: int) -> Logged:
    """Which validations and scores of benchmarks of `step` the lead's logs hold; a collective."""
    found = []
    for name in ("eval/loss_nats_per_token", "tasks/average"):
        found.append(distributed.from_lead(*(_holds(path, step, name) for path in directories)))
    return Logged(*([bool(trial) for trial in trials] for trials in found))


def _holds(workdir: epath.Path, step: int, name: str) -> bool:
    return any(row["step"] == step and name in row for row in read(workdir))
