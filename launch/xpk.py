"""Trains on TPU slices of a GKE cluster that xpk made: `xpk workload create`.

    python -m launch.xpk --config=experiments/configs/NAME.py --workdir=gs://BUCKET/RUN \\
        --topology=v5e:16x16 --num_slices=2 --cluster=CLUSTER --zone=us-west4-a --project=PROJECT

xpk builds an image of --image and the checked-out commit (it needs docker here), and submits a
JobSet through Kueue. Each machine runs under a supervisor; a code that a retry cannot help fails
the workload. Ctrl-C deletes the workload.
"""

import argparse
import re
import shlex

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, launcher, paid, pods, slices, source
from launch import runner as runner_lib

_XPK_SECONDS = 300
# Builds an image and pushes it.
_CREATE_SECONDS = 3600
# Beside 42 and 127 to 255, with which xpk restarts by itself (xpk/parser/workload.py).
_RESTART_CODES = "75,76"
_TIMED_OUT, _FAILED = 124, 125


def parser() -> argparse.ArgumentParser:
    made = launcher.parser(__doc__)
    launcher.add_source(made, "tpu,gcs")
    launcher.add_tpus(made)
    cluster = made.add_argument_group("the cluster")
    cluster.add_argument("--cluster", required=True)
    cluster.add_argument("--zone", required=True)
    cluster.add_argument("--project", required=True)
    cluster.add_argument(
        "--image",
        default=f"python:{source.python_version()}",
        help="that the source is added to: with bash and this Python, from a public registry",
    )
    paid.add_options(made, "workload")
    end = made.add_argument_group("following it")
    end.add_argument(
        "--max_restarts",
        type=launcher.not_negative,
        default=20,
        help="of the workload (default: 20)",
    )
    end.add_argument(
        "--run_hours",
        type=launcher.positive_float,
        default=168.0,
        help="for the run at most, its time in the queue included (default: 168, a week)",
    )
    end.add_argument(
        "--poll_seconds",
        type=launcher.positive_float,
        default=30.0,
        help="between two tries of deleting (default: 30)",
    )
    return made


def _xpk(args, verb: str) -> list[str]:
    return [
        "xpk",
        "workload",
        verb,
        f"--cluster={args.cluster}",
        f"--zone={args.zone}",
        f"--project={args.project}",
    ]


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Plan, create, wait, delete; returns the run's exit code, or 124 after --run_hours."""
    if not args.workdir.startswith(("gs://", "/")):
        raise errors.UserError(
            f"--workdir={args.workdir} would go with its Pod: give a gs:// directory."
        )
    if args.wait_minutes > 60 * args.run_hours:
        raise errors.UserError(
            f"--wait_minutes={args.wait_minutes:g} is more than --run_hours={args.run_hours:g}."
        )
    tpu_type = slices.parse(args.topology).accelerator_type
    bundle = source.bundle(runner, args)
    if not fit.fits(runner, args, args.topology, args.num_slices):
        return exit_codes.DOES_NOT_FIT
    # In /app, where xpk puts --script-dir.
    run = " && ".join(
        [
            shlex.join(["bash", "worker.sh", "install", args.extras, source.python_version()]),
            shlex.join(["bash", "worker.sh", "run", *fit.train_arguments(args)]),
        ]
    )
    create = [
        *_xpk(args, "create"),
        f"--workload={args.name}",
        f"--tpu-type={tpu_type}",
        f"--num-slices={args.num_slices}",
        f"--base-docker-image={args.image}",
        f"--script-dir={bundle}",
        f"--max-restarts={args.max_restarts}",
        f"--restart-on-exit-codes={_RESTART_CODES}",
        *(["--spot"] if args.spot else []),
        f"--command={run}",
    ]
    with _held(runner, args) as succeed:
        result = runner.ask(create, seconds=_CREATE_SECONDS)
        if "already exists" in result.stdout + result.stderr:
            raise paid.NotOurs(f"There is a workload {args.name} already: give another --name.")
        if result.code != 0:
            raise runner_lib.CommandFailed(result)
        try:
            code = _wait(runner, args)
        finally:
            # xpk has pointed kubectl to the cluster.
            pods.fetch_logs(runner, ["kubectl"], args.name, args.run_dir / "logs")
        if code == 0:
            succeed()
        return code


def _held(runner, args):
    """In here the workload may be there."""
    delete = [*_xpk(args, "delete"), f"--workload={args.name}", "--force"]
    return paid.held(
        runner,
        f"workload {args.name}",
        delete_once=lambda: runner.ask(delete, seconds=_XPK_SECONDS).code == 0,
        commands=[delete, _xpk(args, "list")],
        tries=args.delete_tries,
        pause_seconds=args.poll_seconds,
        keep=args.keep,
    )


def _wait(runner, args) -> int:
    """Until the workload has ended; it has to leave the queue within --wait_minutes."""
    first = 60 * args.wait_minutes
    code = _ended(runner, args, first)
    if code == _TIMED_OUT or runner.dry_run:
        queued = runner.ask(
            [*_xpk(args, "list"), "--filter-by-status=QUEUED", f"--filter-by-job={args.name}"],
            seconds=_XPK_SECONDS,
        )
        # A table whose first column is the name.
        if re.search(rf"^{args.name}\s", queued.stdout, re.MULTILINE):
            raise errors.UserError(
                f"{args.name} is still in the queue after {args.wait_minutes:g} minutes: "
                "--wait_minutes waits longer."
            )
        code = _ended(runner, args, 3600 * args.run_hours - first)
    return code


def _ended(runner, args, seconds: float) -> int:
    """Waits; xpk says 0, 124 (timed out) or 125 (failed: the Pods say why)."""
    result = runner.ask(
        [*_xpk(args, "list"), f"--wait-for-job-completion={args.name}", f"--timeout={seconds:.0f}"],
        seconds=seconds + _XPK_SECONDS,
    )
    if result.code == _FAILED:
        return pods.failure(runner, ["kubectl"], args.name)
    if result.code not in (0, _TIMED_OUT):
        raise runner_lib.CommandFailed(result)
    return result.code


if __name__ == "__main__":
    launcher.main(parser(), launch)
