"""Stands in for the driver: ends a group of lanes at once, as its learning rates say.

A rate above 1 diverges. A workdir that holds FAILURES fails as often as the file says.
"""

import ast
import json
import pathlib
import sys

from keel_jax.runtime import exit_codes


def main() -> int:
    given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    workdir = pathlib.Path(given["workdir"])
    with (workdir / "started").open("a") as file:
        file.write("started\n")
    failures = workdir.parents[1] / "FAILURES"
    if failures.exists() and (left := int(failures.read_text())):
        failures.write_text(str(left - 1))
        return 134
    if (workdir.parents[1] / "STOP").exists():
        return exit_codes.PREEMPTED
    rates = ast.literal_eval(given.get("config.lanes.peak_lr", "()"))
    lanes = [(workdir / f"lanes/{lane:03}", rate) for lane, rate in enumerate(rates)]
    lanes = lanes or [(workdir, float(given["config.optim.peak_lr"]))]
    codes = []
    for directory, rate in lanes:
        directory.mkdir(parents=True, exist_ok=True)
        codes.append(exit_codes.DIVERGED if rate > 1 else exit_codes.DONE)
        status = {"exit_code": codes[-1], "step": 2, "compilations": {"cached": 0, "new": 1}}
        (directory / "status.json").write_text(json.dumps(status))
        rows = [{"step": 2, "tokens": 2, "train/loss_nats_per_token": rate},
                {"step": 2, "eval/loss_nats_per_token": 2 * rate}]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return exit_codes.DONE if exit_codes.DONE in codes else exit_codes.DIVERGED


if __name__ == "__main__":
    sys.exit(main())
