"""Trains on TPU slices of a GKE cluster that xpk made: `xpk workload create`.

    python -m launch.xpk --config=experiments/configs/NAME.py --workdir=gs://BUCKET/RUN \\
        --topology=v5e:16x16 --num_slices=2 --cluster=CLUSTER --zone=us-west4-a --project=PROJECT

xpk builds an image of --image and the checked-out commit (it needs docker on this machine), and
submits a JobSet through Kueue. Each machine runs under a supervisor; a code that a retry cannot
help fails the workload. Ctrl-C deletes the workload.
"""

import argparse
import re
import shlex

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, launcher, options, paid, pods, slices, source
from launch import runner as runner_lib

_XPK_SECONDS = 300
# Builds an image and pushes it.
_CREATE_SECONDS = 3600
# In addition to 42 and 127 to 255, with which xpk restarts by itself (xpk/parser/workload.py).
_RESTART_CODES = f"{exit_codes.PREEMPTED},{exit_codes.HUNG}"
# Exit codes of `xpk workload list --wait-for-job-completion` (xpk/core/workload.py).
_TIMED_OUT, _FAILED = 124, 125


def parser() -> options.Parser:
    parser = options.make_parser(__doc__)
    options.add_source_options(parser, "tpu,gcs")
    options.add_slice_options(parser)
    cluster = parser.add_argument_group("the cluster")
    cluster.add_argument("--cluster", required=True)
    cluster.add_argument("--zone", required=True)
    cluster.add_argument("--project", required=True)
    cluster.add_argument(
        "--image",
        default=f"python:{source.python_version()}",
        help="that the source is added to: with bash and this Python, from a public registry",
    )
    paid.add_options(parser, "workload")
    follow = parser.add_argument_group("following it")
    follow.add_argument(
        "--max_restarts",
        type=options.non_negative_int,
        default=20,
        help="of the workload (default: 20)",
    )
    follow.add_argument(
        "--run_hours",
        type=options.positive_float,
        default=168.0,
        help="for the run at most, its time in the queue included (default: 168, a week)",
    )
    follow.add_argument(
        "--poll_seconds",
        type=options.positive_float,
        default=30.0,
        help="between two tries of deleting (default: 30)",
    )
    return parser


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Plan, create, wait, delete; returns the run's exit code, or 124 after --run_hours."""
    options.require_absolute_workdir(args, "would be deleted with its Pod: give a gs:// directory.")
    if args.wait_minutes > 60 * args.run_hours:
        raise errors.UserError(
            f"--wait_minutes={args.wait_minutes:g} is more than --run_hours={args.run_hours:g}."
        )
    tpu_type = slices.parse(args.topology).accelerator_type
    bundle = source.make_bundle(runner, args)
    if not fit.fits(runner, args, args.topology, args.num_slices):
        return exit_codes.DOES_NOT_FIT
    create = _create_command(args, tpu_type, str(bundle))
    with _deleted_at_end(runner, args) as mark_success:
        result = runner.try_run(create, seconds=_CREATE_SECONDS)
        if "already exists" in result.stdout + result.stderr:
            raise paid.NotOurs(f"There is a workload {args.name} already: give another --name.")
        if result.code != 0:
            raise runner_lib.CommandFailed(result)
        try:
            code = _wait(runner, args)
        finally:
            # `xpk workload create` has pointed kubectl to the cluster.
            pods.fetch_logs(runner, ["kubectl"], args.name, args.run_dir / "logs")
        if code == exit_codes.DONE:
            mark_success()
        return code


def _xpk(args: argparse.Namespace, verb: str) -> list[str]:
    return [
        "xpk",
        "workload",
        verb,
        f"--cluster={args.cluster}",
        f"--zone={args.zone}",
        f"--project={args.project}",
    ]


def _create_command(args: argparse.Namespace, tpu_type: str, script_dir: str) -> list[str]:
    # Runs in /app, where xpk puts --script-dir.
    run = " && ".join(
        [
            shlex.join(["bash", "worker.sh", "install", args.extras, source.python_version()]),
            shlex.join(["bash", "worker.sh", "run", *options.train_arguments(args)]),
        ]
    )
    return [
        *_xpk(args, "create"),
        f"--workload={args.name}",
        f"--tpu-type={tpu_type}",
        f"--num-slices={args.num_slices}",
        f"--base-docker-image={args.image}",
        f"--script-dir={script_dir}",
        f"--max-restarts={args.max_restarts}",
        f"--restart-on-exit-codes={_RESTART_CODES}",
        *(["--spot"] if args.spot else []),
        f"--command={run}",
    ]


def _deleted_at_end(runner: runner_lib.Runner, args: argparse.Namespace) -> paid.Scope:
    """A scope in which the workload may exist."""
    delete = [*_xpk(args, "delete"), f"--workload={args.name}", "--force"]
    return paid.resource(
        runner,
        f"workload {args.name}",
        delete_once=lambda: runner.try_run(delete, seconds=_XPK_SECONDS).code == 0,
        delete_command=delete,
        inspect_command=_xpk(args, "list"),
        args=args,
    )


def _wait(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Waits until the workload has ended; it has to leave the queue within --wait_minutes.

    Raises:
      UserError: it did not leave the queue in time.
    """
    queue_seconds = 60 * args.wait_minutes
    code = _wait_for_completion(runner, args, queue_seconds)
    if code == _TIMED_OUT or runner.dry_run:
        queued = runner.try_run(
            [*_xpk(args, "list"), "--filter-by-status=QUEUED", f"--filter-by-job={args.name}"],
            seconds=_XPK_SECONDS,
        )
        # A table whose first column is the name.
        if re.search(rf"^{args.name}\s", queued.stdout, re.MULTILINE):
            raise errors.UserError(
                f"{args.name} is still in the queue after {args.wait_minutes:g} minutes: "
                "--wait_minutes waits longer."
            )
        code = _wait_for_completion(runner, args, 3600 * args.run_hours - queue_seconds)
    return code


def _wait_for_completion(
    runner: runner_lib.Runner, args: argparse.Namespace, seconds: float
) -> int:
    """Waits at most `seconds`; returns the run's exit code, or `_TIMED_OUT`."""
    result = runner.try_run(
        [*_xpk(args, "list"), f"--wait-for-job-completion={args.name}", f"--timeout={seconds:.0f}"],
        seconds=seconds + _XPK_SECONDS,
    )
    if result.code == _FAILED:  # xpk does not say why; the Pods do
        return pods.failed_exit_code(runner, ["kubectl"], args.name)
    if result.code not in (0, _TIMED_OUT):
        raise runner_lib.CommandFailed(result)
    return result.code


if __name__ == "__main__":
    launcher.main(parser(), launch)
