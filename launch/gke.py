"""Trains on TPU slices of a GKE cluster, as a JobSet: one Job a slice, one Pod a machine.

    python -m launch.gke --config=experiments/configs/NAME.py --workdir=gs://BUCKET/RUN \\
        --topology=v5e:4x4 --num_slices=2

The cluster is kubectl's current one (or --context), with JobSet installed and TPU node pools, or
auto-provisioning. Each Pod installs the checked-out commit from a ConfigMap and runs under a
supervisor. A Pod that ends with a code that a retry cannot help fails the JobSet at once; any other
end restarts all Pods together, --max_restarts times at most. Ctrl-C deletes what was created.
"""

import argparse
import json
import shlex
import time

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, launcher, paid, pods, slices, source, verdict
from launch import runner as runner_lib

# A ConfigMap holds 1 MiB, in base64 (kubernetes.io/docs/concepts/configuration/configmap).
_MAX_BUNDLE_BYTES = 700_000
_CONTAINER = "train"
_JOB = "slice"


def parser() -> argparse.ArgumentParser:
    made = launcher.parser(__doc__)
    launcher.add_source(made, "tpu,gcs")
    launcher.add_tpus(made)
    cluster = made.add_argument_group("the cluster")
    cluster.add_argument("--context", help="of kubectl (default: the current one)")
    cluster.add_argument("--namespace", default="default", help="(default: default)")
    cluster.add_argument(
        "--image",
        default=f"python:{source.python_version()}",
        help="with bash and this Python; what it has of the packages already need not be installed",
    )
    cluster.add_argument(
        "--chips_per_machine",
        type=launcher.positive,
        help="of the node pool (default: 4, or all of a smaller slice)",
    )
    cluster.add_argument("--service_account", help="of Kubernetes, for access to gs://")
    cluster.add_argument("--queue", help="Kueue's LocalQueue, if the cluster has Kueue")
    paid.add_options(made, "JobSet")
    end = made.add_argument_group("following it")
    end.add_argument(
        "--max_restarts",
        type=launcher.not_negative,
        default=20,
        help="of all Pods together (default: 20)",
    )
    end.add_argument(
        "--poll_seconds",
        type=launcher.positive_float,
        default=30.0,
        help="between two looks at the JobSet (default: 30)",
    )
    end.add_argument(
        "--grace_seconds",
        type=launcher.positive,
        default=300,
        help="for saving, when a Pod is to go (default: 300)",
    )
    end.add_argument(
        "--lost_minutes",
        type=launcher.positive_float,
        default=60.0,
        help="without an answer of the cluster: give up (default: 60)",
    )
    return made


# --- The manifest -------------------------------------------------------------------------------


def jobset(args: argparse.Namespace) -> dict:
    """The JobSet (jobset.sigs.k8s.io/docs/tasks/tpu_multislice, kubernetes-sigs/jobset:
    api/jobset/v1alpha2/jobset_types.go)."""
    tpu = slices.parse(args.topology)
    chips = args.chips_per_machine or min(4, tpu.num_chips)
    num_machines = tpu.num_machines(chips)
    labels = {"kueue.x-k8s.io/queue-name": args.queue} if args.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": args.name,
            "namespace": args.namespace,
            "labels": labels,
            # One Job has one node pool for itself: a slice is never put together from two.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.max_restarts,
                # A retry cannot help where the Job says that an exit code failed it.
                "rules": [
                    {
                        "name": "final",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": _JOB,
                    "replicas": args.num_slices,
                    "template": {"spec": _job(args, tpu, chips, num_machines)},
                }
            ],
        },
    }


def _job(args, tpu, chips, num_machines) -> dict:
    """Of one slice (batch/v1 JobSpec)."""
    return {
        "parallelism": num_machines,
        "completions": num_machines,
        "completionMode": "Indexed",
        # One lost Pod ends the program of all: the JobSet starts all of them again.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "NotIn",
                        "values": sorted(verdict.RETRYABLE),
                    },
                }
            ]
        },
        "template": {"spec": _pod(args, tpu, chips)},
    }


def _pod(args, tpu, chips) -> dict:
    """Of one machine (v1 PodSpec)."""
    install = shlex.join(
        ["bash", "/keel/worker.sh", "install", args.extras, source.python_version()]
    )
    script = (
        f"mkdir -p /keel && cp -L /bundle/* /keel && {install} && "
        'exec bash /keel/worker.sh run "$@"'
    )
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": args.grace_seconds,
        # The network of the machine itself, for the data centre's speed between slices.
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": tpu.generation.gke_label,
            "cloud.google.com/gke-tpu-topology": tpu.topology,
            **({"cloud.google.com/gke-spot": "true"} if args.spot else {}),
        },
        "containers": [
            {
                "name": _CONTAINER,
                "image": args.image,
                "command": ["bash", "-c", script, "keel", *fit.train_arguments(args)],
                "env": _megascale(args),
                "resources": {
                    "requests": {"google.com/tpu": chips},
                    "limits": {"google.com/tpu": chips},
                },
                "volumeMounts": [{"name": "bundle", "mountPath": "/bundle", "readOnly": True}],
            }
        ],
        "volumes": [{"name": "bundle", "configMap": {"name": args.name}}],
    }
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    return spec


def _megascale(args) -> list[dict]:
    """What makes several slices one program; jax reads it too (its cloud_tpu_cluster.py).

    TPU_WORKER_ID and TPU_WORKER_HOSTNAMES within a slice come from GKE.
    """
    if args.num_slices == 1:
        return []
    return [
        # The first Pod of the first Job, by the names that JobSet gives.
        {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": f"{args.name}-{_JOB}-0-0.{args.name}"},
        {"name": "MEGASCALE_NUM_SLICES", "value": str(args.num_slices)},
        {
            "name": "MEGASCALE_SLICE_ID",
            "valueFrom": {
                "fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/job-index']"}
            },
        },
    ]


# --- The story ----------------------------------------------------------------------------------


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Plan, create, follow, fetch the logs, delete; returns the run's exit code."""
    if not args.workdir.startswith(("gs://", "/")):
        raise errors.UserError(
            f"--workdir={args.workdir} would lie in a Pod and go with it: give a gs:// directory."
        )
    manifest = json.dumps(jobset(args), indent=2)
    bundle = source.bundle(runner, args)
    if not runner.dry_run:
        _check_size(bundle)
    if not fit.fits(runner, args, args.topology, args.num_slices):
        return exit_codes.DOES_NOT_FIT
    kubectl = _kubectl(args)
    there = runner.run(
        [*kubectl, "get", "jobset,configmap", args.name, "--ignore-not-found", "--output=name"],
        seconds=pods.KUBECTL_SECONDS,
    )
    if there.stdout.strip():
        raise errors.UserError(
            f"There is {', '.join(there.stdout.split())} already: give another --name, or delete "
            f"it:\n  {shlex.join(_delete_command(args))}"
        )
    with _held(runner, args) as succeed:
        files = [f"--from-file={bundle / name}" for name in source.FILES]
        runner.run(
            [*kubectl, "create", "configmap", args.name, *files], seconds=pods.KUBECTL_SECONDS
        )
        runner.run([*kubectl, "create", "-f", "-"], seconds=pods.KUBECTL_SECONDS, stdin=manifest)
        try:
            code = _follow(runner, args)
        finally:
            pods.fetch_logs(runner, kubectl, args.name, args.run_dir / "logs")
        if code == 0:
            succeed()
        return code


def _kubectl(args) -> list[str]:
    context = [f"--context={args.context}"] if args.context else []
    return ["kubectl", *context, f"--namespace={args.namespace}"]


def _check_size(bundle):
    size = sum((bundle / name).stat().st_size for name in source.FILES)
    if size > _MAX_BUNDLE_BYTES:
        raise errors.UserError(
            f"The source is {size:,} bytes, but a ConfigMap takes {_MAX_BUNDLE_BYTES:,}: keep "
            "large files out of the repository, or use launch.xpk, which builds an image."
        )


def _delete_command(args) -> list[str]:
    return [*_kubectl(args), "delete", "jobset,configmap", args.name, "--ignore-not-found"]


def _held(runner, args):
    """In here the cluster may hold something of ours."""
    delete = _delete_command(args)
    # kubectl waits until all Pods have gone, which may take their grace.
    seconds = args.grace_seconds + pods.KUBECTL_SECONDS
    return paid.held(
        runner,
        f"JobSet {args.name}",
        delete_once=lambda: runner.ask(delete, seconds=seconds).code == 0,
        commands=[delete, [*_kubectl(args), "get", "jobset,pods"]],
        tries=args.delete_tries,
        pause_seconds=args.poll_seconds,
        keep=args.keep,
    )


def _follow(runner, args) -> int:
    """Waits until the JobSet has ended; the verdict on its Pods.

    Raises:
      UserError: its Pods did not all start within --wait_minutes, or the cluster fell silent.
    """
    begin = heard = time.monotonic()
    started = False
    get = [*_kubectl(args), "get", "jobset", args.name, "--output=json"]
    while True:
        result = runner.ask(get, seconds=pods.KUBECTL_SECONDS)
        if runner.dry_run:
            return 0
        now = time.monotonic()
        if result.code != 0:
            if "NotFound" in result.stderr:
                raise errors.UserError(f"JobSet {args.name} was deleted by someone else.")
            runner.say(result.last_words)
            if now - heard > 60 * args.lost_minutes:
                raise errors.UserError(
                    f"No answer of the cluster for {args.lost_minutes:g} minutes."
                )
        else:
            heard = now
            status = json.loads(result.stdout).get("status", {})
            # JobSet 0.5 and later say so; the condition is as old as JobSet.
            conditions = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
            if "Completed" in conditions:
                return 0
            if "Failed" in conditions:
                return pods.failure(runner, _kubectl(args), args.name)
            ready = sum(job.get("ready", 0) for job in status.get("replicatedJobsStatus", []))
            if ready >= args.num_slices and not started:
                started = True
                runner.say(f"All {args.num_slices} slices run.")
            if not started and now - begin > 60 * args.wait_minutes:
                raise errors.UserError(
                    f"{ready} of {args.num_slices} slices run after {args.wait_minutes:g} minutes: "
                    "--wait_minutes waits longer."
                )
        runner.sleep(args.poll_seconds)


if __name__ == "__main__":
    launcher.main(parser(), launch)
