"""Trains on one TPU slice, created at once or not at all: `gcloud compute tpus tpu-vm`.

    python -m launch.tpu_vm --config=experiments/configs/NAME.py --workdir=gs://BUCKET/RUN \\
        --topology=v5e:4x4 --zone=us-west4-a

Checks that the run fits, creates the slice, installs the checked-out commit on every worker, starts
the run under a supervisor, follows it, fetches the logs and deletes the slice. Ctrl-C asks the run
to save, and deletes. For a place in a queue, or several slices: launch.queued_resource.
"""

import argparse

from keel_jax import errors
from launch import cloud_tpu, launcher, tpu_machine
from launch import runner as runner_lib


def machine(args: argparse.Namespace) -> tpu_machine.Machine:
    """The TPU VM that the options describe.

    States: cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State
    """
    if args.num_slices > 1:
        raise errors.UserError(
            f"{args.num_slices} slices are created as one queued resource: python -m "
            "launch.queued_resource."
        )
    return tpu_machine.Machine(
        kind="tpu-vm",
        name=args.name,
        nodes=(args.name,),
        place_flags=tpu_machine.place_flags(args),
        create_flags=(
            f"--accelerator-type={tpu_machine.accelerator_type(args)}",
            f"--version={tpu_machine.software_version(args)}",
            *(["--spot"] if args.spot else []),
        ),
        delete_flags=(),
        state_field="state",
        ready_state="READY",
        pending_states=frozenset({"CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING"}),
        preempted_states=frozenset({"PREEMPTED", "TERMINATED"}),
    )


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Returns the run's exit code."""
    return cloud_tpu.launch(runner, args, machine(args))


if __name__ == "__main__":
    launcher.main(cloud_tpu.parser(__doc__), launch)
