"""A run on Cloud TPU machines: create, wait, install, start, follow, fetch the logs, delete.

    absent → created → ready → installed → running → ended ──→ deleted
                 └────────┴──────────┴─────────┴── any failure, Ctrl-C, a preemption ──┘

Whatever happens after the request to create, the machine is deleted, or the user is warned loudly
that it was not (`launcher.LeftRunning`). A preempted machine is deleted and created anew, a bounded
number of times.
"""

import argparse
import shlex

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, options, paid, source, tpu_machine, tpu_workers
from launch import runner as runner_lib


def parser(description: str | None) -> options.Parser:
    """Options of both kinds of machine."""
    parser = options.make_parser(description)
    options.add_source_options(parser, "tpu,gcs")
    options.add_slice_options(parser)
    cloud = parser.add_argument_group("Google Cloud")
    cloud.add_argument("--zone", required=True)
    cloud.add_argument("--project", help="(default: gcloud's)")
    cloud.add_argument("--software", help="TPU software version (default: by the generation)")
    options.add_extra_flag_option(cloud, "--create_flag", "gcloud's create", "--reserved")
    options.add_extra_flag_option(cloud, "--connect_flag", "gcloud's ssh and scp", "--internal-ip")
    paid.add_options(parser, "machine")
    _add_follow_options(parser)
    return parser


def _add_follow_options(parser: options.Parser) -> None:
    group = parser.add_argument_group("following it")
    group.add_argument(
        "--logs", help="gs:// directory for the workers' logs (default: RUN_DIR/logs)"
    )
    group.add_argument(
        "--attach",
        action="store_true",
        help="follow a run that is on its machine already, and delete the machine at its end",
    )
    group.add_argument(
        "--max_recreations",
        type=options.non_negative_int,
        default=10,
        help="of the machine after preemptions (default: 10)",
    )
    group.add_argument(
        "--max_restarts",
        type=options.non_negative_int,
        default=3,
        help="of all workers together, once their supervisors have given up (default: 3)",
    )
    group.add_argument(
        "--poll_seconds",
        type=options.positive_float,
        default=60.0,
        help="between two queries of a machine's state (default: 60)",
    )
    group.add_argument(
        "--grace_seconds",
        type=options.positive_float,
        default=300.0,
        help="for the other workers when one has ended, and for saving (default: 300)",
    )
    group.add_argument(
        "--lost_minutes",
        type=options.positive_float,
        default=20.0,
        help="without an answer from the workers, the machine counts as lost (default: 20)",
    )


def launch(
    runner: runner_lib.Runner, args: argparse.Namespace, machine: tpu_machine.Machine
) -> int:
    """The whole life cycle; returns the run's exit code."""
    _check_directories(args)
    if args.attach:
        if tpu_machine.query_state(runner, machine) is None and not runner.dry_run:
            raise errors.UserError(f"There is no {machine.kind} {machine.name} in {args.zone}.")
        bundle = None
    else:
        bundle = source.pack_bundle(runner, source.make_bundle(runner, args))
        if not fit.fits(runner, args, args.topology, args.num_slices):
            return exit_codes.DOES_NOT_FIT
        if tpu_machine.query_state(runner, machine) is not None:
            raise errors.UserError(
                f"There is a {machine.kind} {machine.name} in {args.zone} already: give another "
                "--name, follow it with --attach, or delete it:\n  "
                f"{shlex.join(machine.delete_command)}"
            )
    for recreation in range(args.max_recreations + 1):
        try:
            with tpu_machine.deleted_at_end(runner, args, machine) as mark_success:
                if bundle is not None:
                    tpu_machine.create(runner, args, machine)
                    tpu_workers.install(runner, args, machine, bundle)
                code = tpu_workers.run_to_end(runner, args, machine, is_started=bundle is None)
                tpu_workers.fetch_logs(runner, args, machine)
                if code == exit_codes.DONE:
                    mark_success()
                return code
        except tpu_machine.Preempted as error:
            runner.say(f"{error} It is deleted.")
        if bundle is None:
            raise tpu_machine.StartFailed(
                f"{machine.name} is gone. The same command without --attach goes on from the last "
                "checkpoint on a new one."
            )
        if recreation < args.max_recreations:
            runner.say(f"Creating it anew, {recreation + 1} of at most {args.max_recreations}.")
    raise tpu_machine.StartFailed(
        f"Preempted {args.max_recreations + 1} times: --max_recreations allows more."
    )


def _check_directories(args: argparse.Namespace) -> None:
    options.require_absolute_workdir(
        args,
        "would lie on one worker and be deleted with it: give a gs:// directory, or an absolute "
        "path that all workers share.",
    )
    if args.logs and not args.logs.startswith("gs://"):
        raise errors.UserError(
            f"--logs={args.logs} is no gs:// directory; without --logs, logs go to RUN_DIR/logs."
        )
