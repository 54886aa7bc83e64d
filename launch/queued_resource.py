"""Trains on one or several TPU slices from the queue: `gcloud compute tpus queued-resources`.

    python -m launch.queued_resource --config=experiments/configs/NAME.py \\
        --workdir=gs://BUCKET/RUN --topology=v5e:16x16 --num_slices=2 --zone=us-west4-a --spot

Like launch.tpu_vm, but waits for its turn, --wait_minutes at most. Several slices are created
together and form one program over the data centre's network (Multislice).
"""

from launch import cloud_tpu, launcher, slices


def machine(args) -> cloud_tpu.Machine:
    """The queued resource that the options name.

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
    return cloud_tpu.Machine(
        kind="queued-resources",
        name=args.name,
        nodes=nodes,
        place=cloud_tpu.place(args),
        create_flags=(
            f"--accelerator-type={slices.parse(args.topology).accelerator_type}",
            f"--runtime-version={cloud_tpu.software(args)}",
            *node_flags,
            *(["--spot"] if args.spot else []),
        ),
        delete_flags=("--force",),
        state="state.state",
        ready="ACTIVE",
        coming=frozenset({"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"}),
        preempted=frozenset({"SUSPENDING", "SUSPENDED"}),
    )


def launch(runner, args) -> int:
    return cloud_tpu.launch(runner, args, machine(args))


if __name__ == "__main__":
    launcher.main(cloud_tpu.parser(__doc__), launch)
