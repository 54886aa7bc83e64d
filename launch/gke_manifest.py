"""The manifest of a run on GKE: a JobSet of one Job a slice, one Pod a machine.

JobSet's own fields: jobset.sigs.k8s.io/docs/tasks/tpu_multislice, and kubernetes-sigs/jobset,
api/jobset/v1alpha2/jobset_types.go.
"""

import argparse
import shlex
from typing import Any

from launch import combined_exit_code, options, slices, source

# A value of JSON's, as Kubernetes reads it.
Manifest = dict[str, Any]

_CONTAINER = "train"
_JOB = "slice"


def jobset(args: argparse.Namespace) -> Manifest:
    """The JobSet that the options describe.

    Raises:
      UserError: --topology has no such slice, or --chips_per_machine do not divide it.
    """
    tpu = slices.parse(args.topology)
    chips_per_machine = args.chips_per_machine or min(4, tpu.num_chips)
    labels = {"kueue.x-k8s.io/queue-name": args.queue} if args.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": args.name,
            "namespace": args.namespace,
            "labels": labels,
            # Each Job has a node pool of its own: a slice is never put together from two.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.max_restarts,
                # The Job fails for this reason if a Pod's exit code says that a retry cannot help.
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
                    "template": {"spec": _job(args, tpu, chips_per_machine)},
                }
            ],
        },
    }


def _job(args: argparse.Namespace, tpu: slices.Slice, chips_per_machine: int) -> Manifest:
    """The Job of one slice (batch/v1 JobSpec)."""
    num_machines = tpu.num_machines(chips_per_machine)
    return {
        "parallelism": num_machines,
        "completions": num_machines,
        "completionMode": "Indexed",
        # One lost Pod ends the whole program: the JobSet starts all Pods again.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "NotIn",
                        "values": sorted(combined_exit_code.RETRYABLE),
                    },
                }
            ]
        },
        "template": {"spec": _pod(args, tpu, chips_per_machine)},
    }


def _pod(args: argparse.Namespace, tpu: slices.Slice, chips_per_machine: int) -> Manifest:
    """The Pod of one machine (v1 PodSpec)."""
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
        # The machine's own network, for the data centre's speed between slices.
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
                "command": ["bash", "-c", script, "keel", *options.train_arguments(args)],
                "env": _megascale_env(args),
                "resources": {
                    "requests": {"google.com/tpu": chips_per_machine},
                    "limits": {"google.com/tpu": chips_per_machine},
                },
                "volumeMounts": [{"name": "bundle", "mountPath": "/bundle", "readOnly": True}],
            }
        ],
        "volumes": [{"name": "bundle", "configMap": {"name": args.name}}],
    }
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    return spec


def _megascale_env(args: argparse.Namespace) -> list[Manifest]:
    """The variables that make several slices one program; JAX reads them too.

    (jax/_src/clusters/cloud_tpu_cluster.py.) TPU_WORKER_ID and TPU_WORKER_HOSTNAMES within a slice
    come from GKE.
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
