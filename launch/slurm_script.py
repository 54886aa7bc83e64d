"""The batch script of a run on Slurm, which sbatch reads and the first node executes."""

import argparse
import shlex

from keel_jax.runtime import exit_codes
from launch import options, source


def batch_script(args: argparse.Namespace) -> str:
    """The script that the options describe; sbatch's own options are in its head."""
    run_dir = args.run_dir.absolute()
    head = "\n".join(f"#SBATCH {flag}" for flag in _sbatch_flags(args))
    num_processes = args.nodes * args.gpus_per_node
    train = shlex.join(options.train_arguments(args))
    return f"""#!/usr/bin/env bash
{head}
set -euo pipefail
bundle={shlex.quote(f"{run_dir}/bundle")}
codes={shlex.quote(f"{run_dir}/codes")}
export bundle codes
bash "$bundle/worker.sh" install {shlex.quote(args.extras)} {source.python_version()}
rm -rf "$codes" && mkdir -p "$codes"

# Each process has a supervisor of its own: one lost process ends all, and their supervisors start
# all of them again. JAX finds the coordinator by the step's variables. Once one process has ended
# for good, srun gives the others the time of --wait.
# shellcheck disable=SC2016  # expanded in each task
srun --kill-on-bad-exit=0 --wait={args.grace_seconds} \\
  --output={shlex.quote(f"{run_dir}/logs/%t.log")} --open-mode=append \\
  bash -c 'EXIT_CODE_FILE=$codes/$SLURM_PROCID exec bash "$bundle/worker.sh" run "$@"' keel \\
  {train} &
step=$!
stop_requested=
# srun does not pass SIGTERM on but kills its tasks, so the signal goes to the step, and with it to
# every process in it.
trap 'stop_requested=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done

code=$(cd "$bundle/source" && \\
  ../venv/bin/python -m launch.combined_exit_code "$codes" {num_processes})
echo "exit code: $code"
# The run was asked to save, as its time was nearly up: the job goes back into the queue.
if [ -n "$stop_requested" ] && [ "$code" = {exit_codes.PREEMPTED} ] && \\
  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {args.max_requeues} ]
then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""


def _sbatch_flags(args: argparse.Namespace) -> list[str]:
    return [
        f"--job-name={args.name}",
        f"--nodes={args.nodes}",
        f"--ntasks-per-node={args.gpus_per_node}",
        f"--gpus-per-node={args.gpus_per_node}",
        f"--time={args.time}",
        f"--output={args.run_dir.absolute()}/logs/job.log",
        "--open-mode=append",
        # To the batch script alone (B:), which passes it on.
        f"--signal=B:TERM@{args.grace_seconds}",
        # After a preemption the job goes back into the queue.
        "--requeue",
        *([f"--partition={args.partition}"] if args.partition else []),
        *([f"--account={args.account}"] if args.account else []),
        *args.sbatch_flag,
    ]
