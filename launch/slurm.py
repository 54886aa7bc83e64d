"""Trains on nodes of a Slurm cluster: one process a GPU, submitted by sbatch.

    python -m launch.slurm --config=experiments/configs/NAME.py --workdir=/shared/RUN \\
        --run_dir=/shared/launch/RUN --nodes=4 --gpus_per_node=8 --time=24:00:00

RUN_DIR and WORKDIR lie where all nodes see them. The job installs the checked-out commit once, into
RUN_DIR, and starts every process under a supervisor. Before its time is up it saves and puts
itself back into the queue, as after a preemption, --max_requeues times at most. Logs:
RUN_DIR/logs. With --follow this waits for the end and exits with the run's code.
"""

import argparse
import re
import time

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, launcher, options, paid, slurm_script, source
from launch import runner as runner_lib

_SLURM_SECONDS = 120

# slurm.schedmd.com/job_state_codes.html; a job in any other state has ended.
_PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_RUNNING = frozenset(
    {
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "RESIZING",
        "SUSPENDED",
        "STOPPED",
        "SIGNALING",
        "STAGE_OUT",
    }
)


def parser() -> options.Parser:
    parser = options.make_parser(__doc__)
    options.add_source_options(parser, "cuda")
    job = parser.add_argument_group("the job")
    job.add_argument("--nodes", type=options.positive_int, required=True)
    job.add_argument("--gpus_per_node", type=options.positive_int, required=True)
    job.add_argument(
        "--gpu",
        help="as in h100 or a100-40gb: the plan then says whether the run fits them, by the CUDA "
        "compiler (pip install 'keel_jax[plan-cuda]')",
    )
    job.add_argument("--time", required=True, help="limit of one stay on the nodes, as sbatch's")
    job.add_argument("--partition", help="(default: the cluster's)")
    job.add_argument("--account", help="(default: yours)")
    options.add_extra_flag_option(job, "--sbatch_flag", "sbatch", "--qos=long")
    job.add_argument(
        "--grace_seconds",
        type=options.positive_int,
        default=300,
        help="before the limit, when the run is asked to save (default: 300)",
    )
    job.add_argument(
        "--max_requeues",
        type=options.non_negative_int,
        default=100,
        help="of the job by itself (default: 100)",
    )
    follow = parser.add_argument_group("following it")
    follow.add_argument("--follow", action="store_true", help="wait for its end; Ctrl-C cancels it")
    follow.add_argument(
        "--wait_minutes",
        type=options.positive_float,
        default=24 * 60.0,
        help="with --follow, in the queue at most; then it is cancelled (default: 1440, a day)",
    )
    follow.add_argument(
        "--poll_seconds",
        type=options.positive_float,
        default=60.0,
        help="between two queries of the job's state (default: 60)",
    )
    paid.add_options(parser, "job")
    return parser


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Plan, submit; with --follow wait for the end. Returns the run's exit code, or 0."""
    options.require_absolute_workdir(
        args,
        "depends on where a process starts: give an absolute path that all nodes see.",
    )
    script = args.run_dir / "job.sh"
    source.make_bundle(runner, args)
    runner.write(script, slurm_script.batch_script(args))
    runner.run(["mkdir", "-p", str(args.run_dir / "logs")], seconds=_SLURM_SECONDS)
    # A plan for as many CPU devices checks the shapes and the mesh all the same.
    planned = f"cpu:{args.nodes * args.gpus_per_node}"
    if args.gpu:
        planned = f"{args.gpu}:{args.gpus_per_node}x{args.nodes}"
    if not fit.fits(runner, args, planned):
        return exit_codes.DOES_NOT_FIT
    submit = ["sbatch", "--parsable", str(script)]
    if not args.follow:
        job = _submit(runner, submit)
        runner.say(
            f"Job {job} is submitted. Its state: squeue --jobs={job}. To end it: "
            f"scancel --signal=TERM --batch {job}, then scancel {job}. "
            f"Logs: {args.run_dir / 'logs'}"
        )
        return exit_codes.DONE
    with _cancelled_at_end(runner, args) as mark_success:
        code = _follow(runner, args, _submit(runner, submit))
        if code == exit_codes.DONE:
            mark_success()
        return code


def _submit(runner: runner_lib.Runner, submit: list[str]) -> str:
    """Submits the job; returns its number."""
    stdout = runner.run(submit, seconds=_SLURM_SECONDS).stdout
    if runner.dry_run:
        return "JOB"
    # `sbatch --parsable` prints the number, and ;CLUSTER where there are several clusters.
    job = stdout.strip().split(";")[0]
    if not job.isdigit():
        raise OSError(f"sbatch printed {stdout!r}, which is not a job's number.")
    return job


def _cancelled_at_end(runner: runner_lib.Runner, args: argparse.Namespace) -> paid.Scope:
    """A scope in which the job may exist."""
    # By its name, as its number is unknown if sbatch was interrupted.
    cancel = ["scancel", f"--name={args.name}", "--me"]
    query = ["squeue", f"--name={args.name}", "--me", "--noheader", "--format=%T"]

    def cancel_once() -> bool:
        runner.try_run(cancel, seconds=_SLURM_SECONDS)
        result = runner.try_run(query, seconds=_SLURM_SECONDS)
        return result.code == 0 and not set(result.stdout.split()) - {"COMPLETING"}

    return paid.resource(
        runner,
        f"job {args.name}",
        delete_once=cancel_once,
        delete_command=cancel,
        inspect_command=query,
        args=args,
    )


def _follow(runner: runner_lib.Runner, args: argparse.Namespace, job: str) -> int:
    """Waits until the job has ended; returns its exit code.

    Raises:
      UserError: it did not start within --wait_minutes.
    """
    pending_since = None
    query = [
        "sacct",
        f"--jobs={job}",
        "--allocations",
        "--noheader",
        "--parsable2",
        "--format=State,ExitCode",
    ]
    while True:
        result = runner.try_run(query, seconds=_SLURM_SECONDS)
        if runner.dry_run:
            return exit_codes.DONE
        # As in COMPLETED|0:0 or CANCELLED by 1000|0:15; empty until the accounting knows the job.
        match = re.match(r"(\w+)[^|]*\|(\d+):(\d+)", result.stdout)
        state = match[1] if match else "PENDING"
        if state in _PENDING:
            pending_since = pending_since or time.monotonic()
            if time.monotonic() - pending_since > 60 * args.wait_minutes:
                raise errors.UserError(
                    f"Job {job} is still {state} after {args.wait_minutes:g} minutes: "
                    "--wait_minutes waits longer."
                )
        elif state in _RUNNING:
            pending_since = None  # it may go back into the queue
        else:
            assert match is not None  # otherwise the state is PENDING
            runner.say(f"Job {job}: {state}. Logs: {args.run_dir / 'logs'}")
            return _exit_code(state, code=int(match[2]), signal_number=int(match[3]))
        runner.sleep(args.poll_seconds)


def _exit_code(state: str, code: int, signal_number: int) -> int:
    """The exit code of a job that has ended in this state, as a shell would have it."""
    if code:
        return code
    if signal_number:
        return 128 + signal_number
    # NODE_FAIL or CANCELLED with 0:0, for example, is no success.
    return exit_codes.DONE if state == "COMPLETED" else exit_codes.ERROR


if __name__ == "__main__":
    launcher.main(parser(), launch)
