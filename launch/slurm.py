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
import shlex
import time

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, launcher, paid, source
from launch import runner as runner_lib

_SLURM_SECONDS = 120

# slurm.schedmd.com/job_state_codes.html; the rest are ends.
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


def parser() -> argparse.ArgumentParser:
    made = launcher.parser(__doc__)
    launcher.add_source(made, "cuda")
    job = made.add_argument_group("the job")
    job.add_argument("--nodes", type=launcher.positive, required=True)
    job.add_argument("--gpus_per_node", type=launcher.positive, required=True)
    job.add_argument("--time", required=True, help="limit of one stay on the nodes, as sbatch's")
    job.add_argument("--partition", help="(default: the cluster's)")
    job.add_argument("--account", help="(default: yours)")
    job.add_argument(
        "--sbatch_flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="one more for sbatch, as in --sbatch_flag=--qos=long",
    )
    job.add_argument(
        "--grace_seconds",
        type=launcher.positive,
        default=300,
        help="before the limit the run is told to save (default: 300)",
    )
    job.add_argument(
        "--max_requeues",
        type=launcher.not_negative,
        default=100,
        help="of the job by itself (default: 100)",
    )
    follow = made.add_argument_group("following it")
    follow.add_argument("--follow", action="store_true", help="wait for its end; Ctrl-C cancels it")
    follow.add_argument(
        "--wait_minutes",
        type=launcher.positive_float,
        default=24 * 60.0,
        help="with --follow, in the queue at most; then it is cancelled (default: 1440, a day)",
    )
    follow.add_argument(
        "--poll_seconds",
        type=launcher.positive_float,
        default=60.0,
        help="between two looks at the job (default: 60)",
    )
    paid.add_options(made, "job")
    return made


def batch_script(args: argparse.Namespace) -> str:
    """The job; options that sbatch reads are in its head."""
    run_dir = args.run_dir.absolute()
    flags = [
        f"--job-name={args.name}",
        f"--nodes={args.nodes}",
        f"--ntasks-per-node={args.gpus_per_node}",
        f"--gpus-per-node={args.gpus_per_node}",
        f"--time={args.time}",
        f"--output={run_dir}/logs/job.log",
        "--open-mode=append",
        # To this script alone, which passes it on; and a place in the queue after a preemption.
        f"--signal=B:TERM@{args.grace_seconds}",
        "--requeue",
        *([f"--partition={args.partition}"] if args.partition else []),
        *([f"--account={args.account}"] if args.account else []),
        *args.sbatch_flag,
    ]
    head = "\n".join(f"#SBATCH {flag}" for flag in flags)
    num_processes = args.nodes * args.gpus_per_node
    train = shlex.join(fit.train_arguments(args))
    return f"""#!/usr/bin/env bash
{head}
set -euo pipefail
bundle={shlex.quote(f"{run_dir}/bundle")}
codes={shlex.quote(f"{run_dir}/codes")}
export bundle codes
bash "$bundle/worker.sh" install {shlex.quote(args.extras)} {source.python_version()}
rm -rf "$codes" && mkdir -p "$codes"

# One supervisor a process, as one lost process ends all and all come back together: jax finds its
# coordinator by the step's own variables. When one has ended for good, the rest get some minutes.
# shellcheck disable=SC2016  # expanded in each task
srun --kill-on-bad-exit=0 --wait={args.grace_seconds} \\
  --output={shlex.quote(f"{run_dir}/logs/%t.log")} --open-mode=append \\
  bash -c 'EXIT_CODE_FILE=$codes/$SLURM_PROCID exec bash "$bundle/worker.sh" run "$@"' keel \\
  {train} &
step=$!
asked=
# srun passes SIGTERM on to nobody: it kills its tasks. The step itself is told, with all in it.
trap 'asked=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done

code=$(cd "$bundle/source" && ../venv/bin/python -m launch.verdict "$codes" {num_processes})
echo "exit code: $code"
# Asked to save: its time was nearly up.
if [ -n "$asked" ] && [ "$code" = 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {args.max_requeues} ]
then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Plan, submit; with --follow wait for the end. Returns the run's exit code, or 0."""
    if not args.workdir.startswith(("gs://", "/")):
        raise errors.UserError(
            f"--workdir={args.workdir} depends on where a process starts: give an absolute path "
            "that all nodes see."
        )
    script = args.run_dir / "job.sh"
    source.bundle(runner, args)
    runner.write(script, batch_script(args))
    runner.run(["mkdir", "-p", str(args.run_dir / "logs")], seconds=_SLURM_SECONDS)
    # No plan knows a GPU's memory yet; shapes and the mesh are checked all the same.
    if not fit.fits(runner, args, f"cpu:{args.nodes * args.gpus_per_node}"):
        return exit_codes.DOES_NOT_FIT
    submit = ["sbatch", "--parsable", str(script)]
    if not args.follow:
        answer = runner.run(submit, seconds=_SLURM_SECONDS).stdout
        job = _job_id(answer) if not runner.dry_run else "JOB"
        runner.say(
            f"Job {job}. Look: squeue --jobs={job}. End: scancel --signal=TERM --batch {job}"
            f", then scancel {job}. Logs: {args.run_dir / 'logs'}"
        )
        return 0
    # By its name, until its number is known: sbatch may have been interrupted.
    cancel = ["scancel", f"--name={args.name}", "--me"]
    look = ["squeue", f"--name={args.name}", "--me", "--noheader", "--format=%T"]

    def cancel_once() -> bool:
        runner.ask(cancel, seconds=_SLURM_SECONDS)
        left = runner.ask(look, seconds=_SLURM_SECONDS)
        return left.code == 0 and not set(left.stdout.split()) - {"COMPLETING"}

    with paid.held(
        runner,
        f"job {args.name}",
        delete_once=cancel_once,
        commands=[cancel, look],
        tries=args.delete_tries,
        pause_seconds=args.poll_seconds,
        keep=args.keep,
    ) as succeed:
        answer = runner.run(submit, seconds=_SLURM_SECONDS).stdout
        code = _follow(runner, args, _job_id(answer) if not runner.dry_run else "JOB")
        if code == 0:
            succeed()
        return code


def _job_id(answer: str) -> str:
    """Of `sbatch --parsable`: the number, and ;CLUSTER where there are several."""
    job = answer.strip().split(";")[0]
    if not job.isdigit():
        raise OSError(f"sbatch said {answer!r}, which is no job's number.")
    return job


def _follow(runner, args, job: str) -> int:
    """Waits until the job has ended; its exit code."""
    pending_since = None
    ask = [
        "sacct",
        f"--jobs={job}",
        "--allocations",
        "--noheader",
        "--parsable2",
        "--format=State,ExitCode",
    ]
    while True:
        result = runner.ask(ask, seconds=_SLURM_SECONDS)
        if runner.dry_run:
            return 0
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
            pending_since = None  # it may be put back into the queue
        else:
            runner.say(f"Job {job}: {state}. Logs: {args.run_dir / 'logs'}")
            code, number = int(match[2]), int(match[3])
            # A state like NODE_FAIL or CANCELLED with 0:0 is no success.
            return code or (128 + number if number else 0) or (0 if state == "COMPLETED" else 1)
        runner.sleep(args.poll_seconds)


if __name__ == "__main__":
    launcher.main(parser(), launch)
