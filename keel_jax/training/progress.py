"""The console output of a run: a bar on a terminal, a line per logged step elsewhere."""

import dataclasses
import sys

import jax
import rich.progress

from keel_jax import config
from keel_jax.model import lm
from keel_jax.runtime import distributed


def announce(cfg: config.Config, step: int, recompute: str) -> None:
    """Prints what is about to run, in two lines; `recompute` describes the recomputation plan."""
    if not distributed.is_lead():
        return
    m = cfg.model
    trials = f", {cfg.num_trials} trials" if cfg.num_trials > 1 else ""
    print(
        f"{m.topology}: {m.num_blocks} blocks = {m.num_sublayers} sub-layers, width {m.d_model}, "
        f"{lm.count_params(m):,} parameters{trials}; steps {step} to {cfg.train.num_steps} of "
        f"{cfg.train.batch_size} x {cfg.train.seq_len} tokens on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, attention kernel {m.attention}",
        flush=True,
    )
    print(f"recompute: {recompute}", flush=True)
    if cfg.train.init_from:
        print(f"starting from {cfg.train.init_from}; {describe_groups(cfg.optim)}", flush=True)


def describe_groups(optim: config.OptimConfig) -> str:
    """Which groups of parameters are frozen, and which decay at what rate, in words."""
    names = [field.name for field in dataclasses.fields(config.ParamGroups)]
    rates = {name: getattr(optim.lr_multiplier, name) for name in names}
    frozen = [name for name in names if not rates[name]]
    decays = {
        name: optim.weight_decay * getattr(optim.decay_multiplier, name)
        for name in names
        if rates[name]
    }
    by_decay = {
        decay: [name for name in decays if decays[name] == decay]
        for decay in sorted(set(decays.values()), reverse=True)
    }
    said = [f"frozen: {', '.join(frozen) or 'nothing'}"]
    said += [f"decay {decay:g}: {', '.join(group)}" for decay, group in by_decay.items()]
    return "; ".join(said)


class Progress:
    """A bar on a terminal, a line per logged step elsewhere; a context manager.

    Of several processes only the lead shows it.
    """

    def __init__(self, num_steps: int, start_step: int):
        self._visible = distributed.is_lead()
        self._bar = None
        if self._visible and sys.stdout.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step"),
                rich.progress.MofNCompleteColumn(),
                rich.progress.BarColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[message]}"),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=num_steps, completed=start_step, message="")
        self._num_steps, self._message = num_steps, ""

    def step(self, step: int, message: str | None) -> None:
        """Advances to `step`; `message` replaces the text (None: keep it)."""
        if self._bar:
            self._bar.update(self._task, completed=step)
            if message:
                self._bar.update(self._task, message=message)
        elif self._visible and message:
            print(f"step {step}/{self._num_steps}  {message}", flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()
