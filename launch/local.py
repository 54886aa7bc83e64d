"""Trains in several processes on this machine, on simulated CPU devices or on its GPUs.

    python -m launch.local --config=experiments/configs/NAME.py --workdir=runs/RUN \\
        --num_processes=2 --devices_per_process=4

The processes are one program, as on several machines: a run that works here has found its
coordinator, its share of the data and its collectives. They run from this environment and this
tree, under a supervisor that starts all of them again where that can help. Ctrl-C asks the run to
save.
"""

import argparse
import os
import sys

from keel_jax.runtime import exit_codes
from launch import fit, group, launcher, options, source
from launch import runner as runner_lib


def parser() -> options.Parser:
    parser = options.make_parser(__doc__)
    group.add_process_options(parser)
    return parser


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Plan, then become the supervisor of the run; returns only if nothing is to be run."""
    num_devices = args.num_processes * args.devices_per_process
    # GPUs are planned as CPU devices, as no option says what they are: that checks the shapes and
    # the mesh. `keel_jax.plan --topology=h100:8` says whether the run fits.
    if not fit.fits(runner, args, f"cpu:{num_devices}"):
        return exit_codes.DOES_NOT_FIT
    run = [
        "bash",
        str(source.ROOT / "launch/supervise.sh"),
        sys.executable,
        "-m",
        "launch.group",
        f"--num_processes={args.num_processes}",
        f"--platform={args.platform}",
        f"--devices_per_process={args.devices_per_process}",
        f"--grace_seconds={args.grace_seconds:g}",
        "--",
        sys.executable,
        *options.train_arguments(args),
    ]
    runner.show(run)
    if not runner.dry_run:
        # The supervisor replaces this process: signals reach it, and its exit code is the result.
        sys.stdout.flush()
        os.execvp(run[0], run)
    return exit_codes.DONE


if __name__ == "__main__":
    launcher.main(parser(), launch)
