"""The plan before paying: nothing is created for a run that does not fit (keel_jax/plan.py)."""

import argparse
import sys

from keel_jax.runtime import exit_codes
from launch import runner as runner_lib

# A plan compiles the step; twelve times what 512 blocks took on two cores (docs/planning.md).
_PLAN_SECONDS = 3600


def fits(
    runner: runner_lib.Runner, args: argparse.Namespace, topology: str, num_slices: int = 1
) -> bool:
    """Whether the run fits; with --no_plan it is assumed to.

    Raises:
      runner.CommandFailed: the plan failed, most likely because of a mistake in the options.
    """
    if args.no_plan:
        return True
    plan = [
        sys.executable,
        "-m",
        "keel_jax.plan",
        f"--config={args.config}",
        f"--topology={topology}",
    ]
    if num_slices > 1:
        plan.append(f"--num_slices={num_slices}")
    result = runner.try_run([*plan, *args.overrides], seconds=_PLAN_SECONDS)
    if result.stdout.strip() and not runner.dry_run:
        print(result.stdout.rstrip(), flush=True)
    if result.code == exit_codes.DOES_NOT_FIT:
        runner.say(
            f"The run does not fit {num_slices} x {topology}: nothing was created. "
            "--no_plan launches it all the same."
        )
        return False
    if result.code != exit_codes.DONE:
        raise runner_lib.CommandFailed(result)
    return True
