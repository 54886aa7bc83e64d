"""Trains on one TPU slice, created at once or not at all: `gcloud compute tpus tpu-vm`.

    python -m launch.tpu_vm --config=experiments/configs/NAME.py --workdir=gs://BUCKET/RUN \\
        --topology=v5e:4x4 --zone=us-west4-a

Checks that the run fits, creates the slice, installs the checked-out commit on every worker, starts
the run under a supervisor, follows it, fetches the logs and deletes the slice. Ctrl-C asks the run
to save, and deletes. For a place in a queue, or several slices: launch.queued_resource.
"""

from keel_jax import errors
from launch import cloud_tpu, launcher, slices


def machine(args) -> cloud_tpu.Machine:
    """The TPU VM that the options name.

    States: cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State
    """
    if args.num_slices > 1:
        raise errors.UserError(
            f"{args.num_slices} slices come as one queued resource: python -m "
            "launch.queued_resource."
        )
    return cloud_tpu.Machine(
        kind="tpu-vm",
        name=args.name,
        nodes=(args.name,),
        place=cloud_tpu.place(args),
        create_flags=(
            f"--accelerator-type={slices.parse(args.topology).accelerator_type}",
            f"--version={cloud_tpu.software(args)}",
            *(["--spot"] if args.spot else []),
        ),
        delete_flags=(),
        state="state",
        ready="READY",
        coming=frozenset({"CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING"}),
        preempted=frozenset({"PREEMPTED", "TERMINATED"}),
    )


def launch(runner, args) -> int:
    return cloud_tpu.launch(runner, args, machine(args))


if __name__ == "__main__":
    launcher.main(cloud_tpu.parser(__doc__), launch)
