"""The work directory of a run: what it holds, and whether a run may go on in it.

config.json       the resolved config          versions.json   what it ran on
status.json       where the run stands          metrics.jsonl   one object a logged step
tokenizer.model   a copy, so that samples need no data
checkpoints/      see training/checkpoint.py    tensorboard/    the same metrics, and traces
ancestry.json     of a run with train.init_from: where its weights came from
lanes/000/ …      with several lanes: each lane's config, metrics and status
"""

import math
import secrets
import time

import jax
from etils import epath

from keel_jax import config
from keel_jax.model import lm, residual
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import compilation, distributed, exit_codes, files, versions
from keel_jax.training import ancestry, checkpoint, transfer
from keel_jax.training import state as state_lib

# A change of any of these on a started run would make its weights, its optimiser state or its
# data position mean something else.
_FIXED = (
    "model.",
    "lanes.",
    "seed",
    "data.weights",
    "data.mask_documents",
    "train.batch_size",
    "train.seq_len",
    "train.init_from",
    "optim.name",
)
# These change neither shapes nor, up to rounding, numbers. (What data.path holds is known by its
# fingerprint.)
_FREE = ("model.recompute.", "model.attention")

# Seconds between two writes of status.json while a run goes on.
_STATUS_SECONDS = 5.0
# How long a network file system may take to show a new file to another host.
_SHARED_SECONDS = 20.0


def prepare(workdir: epath.PathLike, cfg: config.Config) -> epath.Path:
    """Creates the directory, or checks that the run in it may go on with `cfg`.

    Raises:
      ValueError: it cannot be written to, or it is not the same directory for every process, or it
        holds a run whose options differ where they must not; both values are named, and nothing is
        written.
    """
    workdir = files.make_writable_directory(workdir)
    if (workdir / checkpoint.DIRECTORY).exists():
        _check_unchanged(workdir, checkpoint.load_config(workdir), cfg)
    # From here on the lead writes: all have read what was there.
    _check_shared(workdir)
    return workdir


def has_ended_as(workdir: epath.Path, state: str) -> bool:
    """Whether the last run here ended in `state` ("done", "diverged", …)."""
    return (files.read_json(workdir / "status.json") or {}).get("state") == state


def describe(workdir: epath.Path, cfg: config.Config, tokenizer: epath.Path) -> None:
    """Writes the run's description, for the run and for each lane."""
    if not distributed.is_lead():
        return
    for directory, lane_cfg in zip(directories(workdir, cfg), _configs(cfg), strict=True):
        directory.mkdir(parents=True, exist_ok=True)
        files.write_json(directory / "config.json", config.to_dict(lane_cfg))
        (directory / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    for lane, directory in enumerate(lane_directories(workdir, cfg)):
        if cfg.num_lanes > 1:
            holder = {"checkpoints_in": "../..", "lane": lane}
            files.write_json(directory / checkpoint.LANE_FILE, holder)
    files.write_json(workdir / "versions.json", versions.describe())


def lane_directories(workdir: epath.Path, cfg: config.Config) -> list[epath.Path]:
    """Where each lane's metrics and status go: one lane's, the work directory itself."""
    if cfg.num_lanes == 1:
        return [workdir]
    return [workdir / "lanes" / f"{lane:03}" for lane in range(cfg.num_lanes)]


def directories(workdir: epath.Path, cfg: config.Config) -> list[epath.Path]:
    """The work directory and, if there are several lanes, theirs."""
    return [workdir] if cfg.num_lanes == 1 else [workdir, *lane_directories(workdir, cfg)]


class Status:
    """status.json of the run and of each lane; as a context manager it records a failure."""

    def __init__(
        self,
        workdir: epath.Path,
        cfg: config.Config,
        kernel: str,
        recompute: dict,
        clock: clock_lib.Clock,
        compilations: compilation.Counter,
    ):
        self._workdir, self._cfg, self._kernel = workdir, cfg, kernel
        self._recompute = recompute
        self._clock, self._compilations = clock, compilations
        self._step, self._written = 0, -math.inf
        self._ancestry = ancestry.read(workdir)

    def __enter__(self) -> "Status":
        return self

    def __exit__(self, kind, error, _):
        if error is not None:
            self._write(distributed.exit_code(error), error=str(error))

    def hung(self, activity: str) -> None:
        """The run ends because it stands still."""
        self._write(exit_codes.HUNG, error=activity)

    def say(self, step: int) -> None:
        """The run is going on, at `step`; written at most every few seconds."""
        self._step = step
        if self._clock.total - self._written > _STATUS_SECONDS:
            self._write(None)

    def end(self, exit_code: int, step: int, state: state_lib.TrainState) -> int:
        """The run ends with `exit_code`, which is returned; each lane with its own."""
        steps, diverged = transfer.fetch((state.step, state.diverged))
        codes = [exit_codes.DIVERGED if lane else exit_code for lane in diverged.reshape(-1)]
        self._step = step
        self._write(exit_code, codes, steps.reshape(-1).tolist())
        return exit_code

    def _write(self, exit_code, lane_codes=None, lane_steps=None, error: str | None = None):
        if not distributed.is_lead():
            return
        self._written = self._clock.total
        self._write_one(self._workdir, exit_code, self._step, error)
        if self._cfg.num_lanes > 1:
            lanes = lane_directories(self._workdir, self._cfg)
            codes = lane_codes or [exit_code] * len(lanes)
            steps = lane_steps or [self._step] * len(lanes)
            for directory, code, step in zip(lanes, codes, steps, strict=True):
                self._write_one(directory, code, step, error)

    def _write_one(self, directory, exit_code, step, error):
        cfg = self._cfg
        status = {
            "state": "running" if exit_code is None else exit_codes.STATES[exit_code],
            "exit_code": exit_code,
            "step": step,
            "num_steps": cfg.train.num_steps,
            "tokens": step * cfg.train.tokens_per_step,
            "topology": cfg.model.topology,
            "alpha": float(residual.topology(cfg.model).alpha[-1, residual.FFN]),
            "final_norm": lm.has_final_norm(cfg.model),
            "num_blocks": cfg.model.num_blocks,
            "num_sublayers": cfg.model.num_sublayers,
            "num_params": lm.count_params(cfg.model),
            "attention_kernel": self._kernel,
            "recompute": self._recompute,
            "ancestry": self._ancestry,
            "compile_seconds": self._clock["compile"],
            "compilations": {"cached": self._compilations.hits, "new": self._compilations.misses},
            "seconds": {**self._clock.seconds, "total": self._clock.total},
        }
        if error is not None:
            status["error"] = error
        files.write_json(directory / "status.json", status)


def _configs(cfg: config.Config) -> list[config.Config]:
    if cfg.num_lanes == 1:
        return [cfg]
    return [cfg, *(cfg.for_lane(lane) for lane in range(cfg.num_lanes))]


def _check_shared(workdir):
    """Whether every process sees what the lead writes here; a collective."""
    if jax.process_count() == 1:
        return
    mark = workdir / f".shared.{distributed.from_lead(secrets.randbits(31))[0]}"
    if distributed.is_lead():
        mark.write_bytes(b"")
    distributed.from_all(True)  # written
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    missing = [number for number, saw in enumerate(distributed.from_all(seen)) if not saw]
    if distributed.is_lead():
        mark.unlink()
    if missing:
        raise ValueError(
            f"{workdir} is another directory on process {', '.join(map(str, missing))} than on "
            "process 0: give a --workdir on a file system that all of them share, or gs://."
        )


def _check_unchanged(workdir, saved: config.Config, cfg: config.Config):
    changed = {
        key: values
        for key, values in config.differences(saved, cfg).items()
        if key.startswith(_FIXED) and not key.startswith(_FREE)
    }
    if changed:
        lines = "; ".join(
            f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items()
        )
        raise ValueError(
            f"{workdir} holds a run with other options ({lines}). Use the run's own options, or "
            "another --workdir; train.init_from starts a new run from its weights."
        )
