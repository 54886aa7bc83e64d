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
import pathlib
import shlex
import time
from typing import Any

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, gke_manifest, launcher, options, paid, pods, source
from launch import runner as runner_lib

# A ConfigMap holds 1 MiB, in base64 (kubernetes.io/docs/concepts/configuration/configmap).
_MAX_BUNDLE_BYTES = 700_000


def parser() -> options.Parser:
    parser = options.make_parser(__doc__)
    options.add_source_options(parser, "tpu,gcs")
    options.add_slice_options(parser)
    cluster = parser.add_argument_group("the cluster")
    cluster.add_argument("--context", help="of kubectl (default: the current one)")
    cluster.add_argument("--namespace", default="default", help="(default: default)")
    cluster.add_argument(
        "--image",
        default=f"python:{source.python_version()}",
        help="with bash and this Python; packages that it has already are not installed again",
    )
    cluster.add_argument(
        "--chips_per_machine",
        type=options.positive_int,
        help="of the node pool (default: 4, or all of a smaller slice)",
    )
    cluster.add_argument("--service_account", help="of Kubernetes, for access to gs://")
    cluster.add_argument("--queue", help="Kueue's LocalQueue, if the cluster has Kueue")
    paid.add_options(parser, "JobSet")
    _add_follow_options(parser)
    return parser


def _add_follow_options(parser: options.Parser) -> None:
    group = parser.add_argument_group("following it")
    group.add_argument(
        "--max_restarts",
        type=options.non_negative_int,
        default=20,
        help="of all Pods together (default: 20)",
    )
    group.add_argument(
        "--poll_seconds",
        type=options.positive_float,
        default=30.0,
        help="between two queries of the JobSet's status (default: 30)",
    )
    group.add_argument(
        "--grace_seconds",
        type=options.positive_int,
        default=300,
        help="for a Pod to save before it is killed (default: 300)",
    )
    group.add_argument(
        "--lost_minutes",
        type=options.positive_float,
        default=60.0,
        help="without an answer from the cluster, then give up (default: 60)",
    )


def launch(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Plan, create, follow, fetch the logs, delete; returns the run's exit code."""
    options.require_absolute_workdir(
        args, "would lie in a Pod and be deleted with it: give a gs:// directory."
    )
    manifest = json.dumps(gke_manifest.jobset(args), indent=2)
    bundle = source.make_bundle(runner, args)
    if not runner.dry_run:
        _check_size(bundle)
    if not fit.fits(runner, args, args.topology, args.num_slices):
        return exit_codes.DOES_NOT_FIT
    kubectl = _kubectl(args)
    existing = runner.run(
        [*kubectl, "get", "jobset,configmap", args.name, "--ignore-not-found", "--output=name"],
        seconds=pods.KUBECTL_SECONDS,
    ).stdout.split()
    if existing:
        raise errors.UserError(
            f"There is {', '.join(existing)} already: give another --name, or delete it:\n"
            f"  {shlex.join(_delete_command(args))}"
        )
    with _deleted_at_end(runner, args) as mark_success:
        files = [f"--from-file={bundle / name}" for name in source.FILES]
        runner.run(
            [*kubectl, "create", "configmap", args.name, *files], seconds=pods.KUBECTL_SECONDS
        )
        runner.run([*kubectl, "create", "-f", "-"], seconds=pods.KUBECTL_SECONDS, stdin=manifest)
        try:
            code = _follow(runner, args)
        finally:
            pods.fetch_logs(runner, kubectl, args.name, args.run_dir / "logs")
        if code == exit_codes.DONE:
            mark_success()
        return code


def _kubectl(args: argparse.Namespace) -> list[str]:
    context = [f"--context={args.context}"] if args.context else []
    return ["kubectl", *context, f"--namespace={args.namespace}"]


def _check_size(bundle: pathlib.Path) -> None:
    size_bytes = sum((bundle / name).stat().st_size for name in source.FILES)
    if size_bytes > _MAX_BUNDLE_BYTES:
        raise errors.UserError(
            f"The source is {size_bytes:,} bytes, but a ConfigMap takes {_MAX_BUNDLE_BYTES:,}: "
            "keep large files out of the repository, or use launch.xpk, which builds an image."
        )


def _delete_command(args: argparse.Namespace) -> list[str]:
    return [*_kubectl(args), "delete", "jobset,configmap", args.name, "--ignore-not-found"]


def _deleted_at_end(runner: runner_lib.Runner, args: argparse.Namespace) -> paid.Scope:
    """A scope in which the JobSet and the ConfigMap may exist."""
    delete = _delete_command(args)
    # kubectl waits until all Pods have ended, for which they have --grace_seconds.
    seconds = args.grace_seconds + pods.KUBECTL_SECONDS
    return paid.resource(
        runner,
        f"JobSet {args.name}",
        delete_once=lambda: runner.try_run(delete, seconds=seconds).code == 0,
        delete_command=delete,
        inspect_command=[*_kubectl(args), "get", "jobset,pods"],
        args=args,
    )


def _follow(runner: runner_lib.Runner, args: argparse.Namespace) -> int:
    """Waits until the JobSet has ended; returns the combined exit code of its Pods.

    Raises:
      UserError: its Pods did not all start within --wait_minutes, it was deleted, or the cluster
        did not answer for --lost_minutes.
    """
    begin = last_answer = time.monotonic()
    started = False
    query = [*_kubectl(args), "get", "jobset", args.name, "--output=json"]
    while True:
        result = runner.try_run(query, seconds=pods.KUBECTL_SECONDS)
        if runner.dry_run:
            return exit_codes.DONE
        now = time.monotonic()
        if result.code != 0:
            if "NotFound" in result.stderr:
                raise errors.UserError(f"JobSet {args.name} was deleted by someone else.")
            runner.say(result.output_tail)
            if now - last_answer > 60 * args.lost_minutes:
                raise errors.UserError(
                    f"No answer from the cluster for {args.lost_minutes:g} minutes."
                )
        else:
            last_answer = now
            status = json.loads(result.stdout).get("status", {})
            conditions = _true_conditions(status)
            if "Completed" in conditions:
                return exit_codes.DONE
            if "Failed" in conditions:
                return pods.failed_exit_code(runner, _kubectl(args), args.name)
            num_ready = sum(job.get("ready", 0) for job in status.get("replicatedJobsStatus", []))
            if num_ready >= args.num_slices and not started:
                started = True
                runner.say(f"All {args.num_slices} slices run.")
            if not started and now - begin > 60 * args.wait_minutes:
                raise errors.UserError(
                    f"{num_ready} of {args.num_slices} slices run after {args.wait_minutes:g} "
                    "minutes: --wait_minutes waits longer."
                )
        runner.sleep(args.poll_seconds)


def _true_conditions(status: dict[str, Any]) -> set[str]:
    """Types of the JobSet's conditions that hold."""
    return {
        condition["type"]
        for condition in status.get("conditions", [])
        if condition["status"] == "True"
    }


if __name__ == "__main__":
    launcher.main(parser(), launch)
