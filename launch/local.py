"""Trains in several processes on this machine, on simulated CPU devices or on its GPUs.

    python -m launch.local --config=experiments/configs/NAME.py --workdir=runs/RUN \\
        --num_processes=2 --devices_per_process=4

The processes are one program, as on several machines: what works here has found its coordinator,
its share of the data and its collectives. They run from this environment and this tree, under a
supervisor that starts all of them again where that can help. Ctrl-C asks the run to save.
"""

import os
import sys

from keel_jax.runtime import exit_codes
from launch import fit, group, launcher, source


def parser():
    made = launcher.parser(__doc__)
    group.add_processes(made)
    return made


def launch(runner, args) -> int:
    num_devices = args.num_processes * args.devices_per_process
    # No plan knows a GPU's memory yet; shapes and the mesh are checked all the same.
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
        *fit.train_arguments(args),
    ]
    runner.show(run)
    if not runner.dry_run:
        # In this process's place: the supervisor gets the signals, and its code is the answer.
        sys.stdout.flush()
        os.execvp(run[0], run)
    return 0


if __name__ == "__main__":
    launcher.main(parser(), launch)
