"""Stands in for the driver: writes at once what a run of known tolerance would have written.

A topology learns up to its rate in LIMITS and not beyond, and at more than 256 sub-layers up to a
smaller one; on a ramp it spikes there. A rate above 1 diverges. A sweep with a file FAILURES fails
as often as that says; with one HANG it runs until it is asked to stop, or those of its groups do
whose directories begin with what the file holds; with one STOP the others stop with the exit code
that it holds. Each start adds a line to the group's file `started`: its process and its cores.
"""

import ast
import json
import os
import pathlib
import signal
import sys
import time

import numpy as np

from keel_jax.runtime import exit_codes

LIMITS = {"keel": 3e-2, "pre_ln": 1.2e-2, "post_ln": 2e-3}
BEGIN, END, SPIKE = 6.0, 2.0, 8.0


def main() -> int:
    given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    workdir = pathlib.Path(given["workdir"])
    hang = workdir.parents[1] / "HANG"
    hangs = hang.exists() and workdir.name.startswith(hang.read_text())
    if hangs:  # as the driver: a stop request is answered by saving and leaving
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_codes.PREEMPTED))
    with (workdir / "started").open("a") as file:
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        file.write(f"{os.getpid()}:{cores}\n")
    if hangs:
        time.sleep(120)
    if _takes_a_failure(workdir.parents[1] / "FAILURES"):
        return 134
    if (workdir.parents[1] / "STOP").exists():
        return int((workdir.parents[1] / "STOP").read_text())
    rates = ast.literal_eval(given.get("config.trials.peak_lr", "()"))
    seeds = ast.literal_eval(given.get("config.trials.seed", "()"))
    trials = [
        (workdir / f"trials/{trial:03}", rate, seed)
        for trial, (rate, seed) in enumerate(zip(rates, seeds, strict=True))
    ]
    if not trials:
        trials = [(workdir, float(given["config.optim.peak_lr"]), int(given["config.seed"]))]
    codes = [_write(*trial, given) for trial in trials]
    return exit_codes.DONE if exit_codes.DONE in codes else exit_codes.DIVERGED


def _takes_a_failure(path: pathlib.Path) -> bool:
    """Counts the file down by 1; of two processes side by side one does."""
    own = path.with_name(f"FAILURES-{os.getpid()}")
    try:
        path.rename(own)
    except FileNotFoundError:
        return False
    left = int(own.read_text())
    own.write_text(str(max(0, left - 1)))
    own.rename(path)
    return left > 0


def curve(peak_lr: float, seed: int, num_steps: int, topology: str, num_blocks: int, is_ramp: bool):
    """Rates and losses of a run, [S]."""
    # So that the limits are among the smaller rates that are trained at depth.
    limit = LIMITS.get(topology, 5e-3) * min(1.0, 128 / num_blocks)
    steps = np.arange(num_steps)
    rate = peak_lr * (steps / num_steps if is_ramp else np.ones(num_steps))
    if is_ramp:
        loss = BEGIN + (END - BEGIN) * np.minimum(1.0, 4 * steps / num_steps)
        loss = np.where(rate > limit, SPIKE, loss)
    else:
        loss = BEGIN + (END - BEGIN) * (peak_lr <= limit) * (steps + 1) / num_steps
    return rate, loss + 0.01 * seed


def _write(directory: pathlib.Path, peak_lr: float, seed: int, given: dict) -> int:
    num_steps = int(given.get("config.train.num_steps", 200))
    rate, loss = curve(
        peak_lr,
        seed,
        num_steps,
        given.get("config.model.topology", "keel"),
        int(given.get("config.model.num_blocks", 1)),
        given.get("config.optim.schedule") == "linear_ramp",
    )
    code = exit_codes.DIVERGED if peak_lr > 1 else exit_codes.DONE
    rows = [
        {
            "step": n + 1,
            "tokens": n,
            "train/loss_nats_per_token": loss[n],
            "train/learning_rate": rate[n],
            "train/grad_norm": 1.0,
        }
        for n in range(num_steps)
    ]
    if code == exit_codes.DONE:
        rows.append(
            {"step": num_steps, "eval/loss_nats_per_token": loss[-1], "eval/accuracy": 1 / loss[-1]}
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = {"exit_code": code, "step": num_steps, "compilations": {"cached": 0, "new": 1}}
    (directory / "status.json").write_text(json.dumps(status))
    return code


if __name__ == "__main__":
    sys.exit(main())
