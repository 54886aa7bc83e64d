"""Trains on one or several TPU slices from the queue: `gcloud compute tpus queued-resources`.

    python -m launch.queued_resource --config=experiments/configs/NAME.py \\
        --workdir=gs://BUCKET/RUN --topology=v5e:16x16 --num_slices=2 --zone=us-west4-a --spot

Like launch.tpu_vm, but waits in the queue, --wait_minutes at most. Several slices are created
together and form one program over the data centre's network (Multislice).
"""

import argparse

from launch import cloud_tpu, launcher, tpu_machine
from launch import runner as runner_lib


def machine(args: argparse.Namespace) -> tpu_machine.Machine:
    """The queued resource that the options describe.

    Its slices are TPU VMs NAME, or NAME-0, NAME-1, …
    (cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources#MultisliceParams).
    States: cloud.google.com/tpu/docs/queued-resources; a preempted one becomes SUSPENDED and stays
    in the list, with its share of the quota, until it is deleted.
    """
    if args.num_slices > 1:
        nodes = tuple(f"{args.name}-{index}" for index in range(args.num_slices))
        # gcloud refuses a count of one.
        node_flags = [f"--node-count={args.num_slices}", f"--node-prefix={args.name}"]
    else:
        nodes = (args.name,)
        node_flags = [f"--node-id={args.name}"]
    return tpu_machine.Machine(
        kind="queued-resources",
        name=args.name,
        nodes=nodes,
        place_flags=tpu_machine.place_flags(args),
        create_flags=(
            f"--accelerator-type={tpu_machine.accelerator_type(args)}",
            f"--runtime-version={tpu_machine.software_version(args)}",
            *node_flags,
            *(["--spot"] if args.spot else []),
        ),
        delete_flags=("--force",),
        state_field="state.state",
        ready_state="ACTIVE",
        pending_states=frozenset({"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"}),
        preempted_states=frozenset({"SUSPENDING", "SUSPENDED"}),
    )


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Returns the run's exit code."""
    return cloud_tpu.launch(runner, args, machine(args))


if __name__ == "__main__":
    launcher.main(cloud_tpu.parser(__doc__), launch)
