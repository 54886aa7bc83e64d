"""A run on Cloud TPU machines: create, wait, install, start, follow, fetch the logs, delete.

    absent → created → ready → installed → running → ended ──→ deleted
                 └────────┴──────────┴─────────┴── any failure, Ctrl-C, a preemption ──┘

Whatever happens after the request to create, the machine is deleted, or the user is told loudly
that it was not (`command.LeftRunning`). A preempted machine is deleted and created anew, a bounded
number of times. Each worker has a supervisor (supervise.sh), so that the run survives this
launcher's connection; the launcher looks at it now and then.

What is easy to get wrong, from the source of the Google Cloud SDK (528.0.0,
command_lib/compute/tpus):
  - `queued-resources ssh` goes on without the slices that it could not prepare, and files exit
    codes by the worker's number within its slice. So each slice is reached by `tpu-vm ssh`.
  - `tpu-vm ssh --worker=all` waits for all workers, then exits with the first code that is not 0;
    `tpu-vm scp` repeats a copy up to ten times, so a half-made directory would be copied into.
  - `--valid-until-duration` has no effect without `--valid-after-…`: this launcher bounds the wait.
  - `queued-resources delete` refuses one that has nodes, but for `--force`.
"""

import argparse
import contextlib
import dataclasses
import re
import shlex
import time

from keel_jax import errors
from keel_jax.runtime import exit_codes
from launch import fit, launcher, paid, slices, source, verdict
from launch import runner as runner_lib

# Bounds on single commands, seconds. Creating a large slice took quarters of an hour; a guess.
_CREATE_SECONDS = 3600
_DELETE_SECONDS = 1200
_ASK_SECONDS = 120
_COPY_SECONDS = 600
_INSTALL_SECONDS = 1800

_STATUS = re.compile(r"^keel-worker (\S+) (installed|absent|running|exited (\d+))$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is paid for: one TPU VM, or one queued resource of several slices.

    Attributes:
      kind: gcloud's noun, tpu-vm or queued-resources.
      nodes: names of the TPU VMs in it, one a slice.
      create_flags: of `gcloud compute tpus KIND create`.
      delete_flags: likewise.
      state: gcloud's projection of its state.
      ready: the state in which its workers can be reached.
      coming: states that lead there.
      preempted: states that mean that it was taken away. Any other is a failure.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    place: tuple[str, ...]
    create_flags: tuple[str, ...]
    delete_flags: tuple[str, ...]
    state: str
    ready: str
    coming: frozenset[str]
    preempted: frozenset[str]

    def gcloud(self, verb: str, *flags: str) -> list[str]:
        """A command about it as a whole."""
        tpus = ["gcloud", "compute", "tpus", self.kind, verb, self.name]
        return [*tpus, *self.place, *flags, "--quiet"]

    def ssh(self, remote: str, connect_flags=()) -> list[list[str]]:
        """A command for each slice that runs `remote` on all its workers."""
        return [
            [
                "gcloud",
                "compute",
                "tpus",
                "tpu-vm",
                "ssh",
                node,
                *self.place,
                "--worker=all",
                *connect_flags,
                f"--command={remote}",
                "--quiet",
            ]
            for node in self.nodes
        ]

    def scp(self, path, connect_flags=()) -> list[list[str]]:
        """A command for each slice that copies a file to the home directory of all its workers."""
        return [
            [
                "gcloud",
                "compute",
                "tpus",
                "tpu-vm",
                "scp",
                str(path),
                f"{node}:",
                *self.place,
                "--worker=all",
                *connect_flags,
                "--quiet",
            ]
            for node in self.nodes
        ]

    @property
    def delete(self) -> list[str]:
        return self.gcloud("delete", *self.delete_flags)


class StartFailed(errors.UserError):
    """The machine did not become ready."""


class Preempted(Exception):
    """The machine was taken away, or cannot be reached any more."""


def parser(description: str):
    """Options of both kinds of machine."""
    made = launcher.parser(description)
    launcher.add_source(made, "tpu,gcs")
    launcher.add_tpus(made)
    cloud = made.add_argument_group("Google Cloud")
    cloud.add_argument("--zone", required=True)
    cloud.add_argument("--project", help="(default: gcloud's)")
    cloud.add_argument("--software", help="TPU software version (default: by the generation)")
    cloud.add_argument(
        "--create_flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="one more for gcloud's create, as in --create_flag=--reserved",
    )
    cloud.add_argument(
        "--connect_flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="one more for gcloud's ssh and scp, as in --connect_flag=--internal-ip",
    )
    paid.add_options(made, "machine")
    end = made.add_argument_group("following it")
    end.add_argument("--logs", help="gs:// directory for the workers' logs (default: RUN_DIR/logs)")
    end.add_argument(
        "--attach",
        action="store_true",
        help="to a run that is on its machine already: follow it, and delete the machine",
    )
    end.add_argument(
        "--max_recreations",
        type=launcher.not_negative,
        default=10,
        help="after preemptions (default: 10)",
    )
    end.add_argument(
        "--max_restarts",
        type=launcher.not_negative,
        default=3,
        help="of all workers together, once their supervisors have given up (default: 3)",
    )
    end.add_argument(
        "--poll_seconds",
        type=launcher.positive_float,
        default=60.0,
        help="between two looks at a machine (default: 60)",
    )
    end.add_argument(
        "--grace_seconds",
        type=launcher.positive_float,
        default=300.0,
        help="for the other workers when one has ended, and for saving (default: 300)",
    )
    end.add_argument(
        "--lost_minutes",
        type=launcher.positive_float,
        default=20.0,
        help="without a word of the workers: the machine counts as lost (default: 20)",
    )
    return made


def place(args: argparse.Namespace) -> tuple[str, ...]:
    """Flags that say where a machine is."""
    return (f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else []))


def software(args: argparse.Namespace) -> str:
    """The software version of the machines."""
    return args.software or slices.parse(args.topology).generation.software


def launch(runner: runner_lib.Runner, args: argparse.Namespace, machine: Machine) -> int:
    """The whole story; returns the run's exit code."""
    _check(args)
    if args.attach:
        if _state(runner, machine) is None and not runner.dry_run:
            raise errors.UserError(f"There is no {machine.kind} {machine.name} in {args.zone}.")
        bundle = None
    else:
        bundle = source.packed(runner, source.bundle(runner, args))
        if not fit.fits(runner, args, args.topology, args.num_slices):
            return exit_codes.DOES_NOT_FIT
        if _state(runner, machine) is not None:
            raise errors.UserError(
                f"There is a {machine.kind} {machine.name} in {args.zone} already: give another "
                f"--name, follow it with --attach, or delete it:\n  {shlex.join(machine.delete)}"
            )
    for recreation in range(args.max_recreations + 1):
        try:
            with _held(runner, args, machine) as succeed:
                if bundle is not None:
                    _create(runner, args, machine)
                    _install(runner, args, machine, bundle)
                code = _run(runner, args, machine, started=bundle is None)
                _fetch_logs(runner, args, machine)
                if code == 0:
                    succeed()
                return code
        except Preempted as error:
            runner.say(f"{error} It is deleted.")
        if bundle is None:
            raise StartFailed(
                f"{machine.name} is gone. The same command without --attach goes on from the last "
                "checkpoint on a new one."
            )
        if recreation < args.max_recreations:
            runner.say(f"Creating it anew, {recreation + 1} of at most {args.max_recreations}.")
    raise StartFailed(f"Preempted {args.max_recreations + 1} times: --max_recreations allows more.")


def _check(args):
    if not args.workdir.startswith(("gs://", "/")):
        raise errors.UserError(
            f"--workdir={args.workdir} would lie on one worker and go with it: give a gs:// "
            "directory, or an absolute path that all workers share."
        )
    if args.logs and not args.logs.startswith("gs://"):
        raise errors.UserError(
            f"--logs={args.logs} is no gs:// directory; logs come to RUN_DIR/logs."
        )


# --- The machine --------------------------------------------------------------------------------


def _held(runner, args, machine):
    """In here the machine may be there."""

    def delete_once() -> bool:
        runner.ask(machine.delete, seconds=_DELETE_SECONDS)
        # Not its exit code but a look: a deletion may fail because an earlier one has succeeded.
        with contextlib.suppress(runner_lib.CommandFailed):
            return _state(runner, machine) is None
        return False

    return paid.held(
        runner,
        f"{machine.kind} {machine.name}",
        delete_once=delete_once,
        commands=[machine.delete, machine.gcloud("describe")],
        tries=args.delete_tries,
        pause_seconds=args.poll_seconds,
        keep=args.keep,
    )


def _state(runner, machine) -> str | None:
    """Its state, or None if it is not there.

    Raises:
      runner.CommandFailed: nobody knows.
    """
    result = runner.ask(
        machine.gcloud("describe", f"--format=value({machine.state})"), seconds=_ASK_SECONDS
    )
    if result.code != 0:
        if "NOT_FOUND" in result.stderr:
            return None
        raise runner_lib.CommandFailed(result)
    return result.stdout.strip() or (None if runner.dry_run else "UNKNOWN")


def _create(runner, args, machine):
    """Creates it and waits until it is ready, a bounded time."""
    deadline = time.monotonic() + 60 * args.wait_minutes
    result = runner.ask(
        machine.gcloud("create", *machine.create_flags, *args.create_flag),
        seconds=min(_CREATE_SECONDS, 60 * args.wait_minutes),
    )
    if "ALREADY_EXISTS" in result.stderr:
        raise paid.NotOurs(f"Someone else has created it just now:\n{result.last_words}")
    if result.code != 0:
        raise runner_lib.CommandFailed(result)
    while True:
        try:
            state = _state(runner, machine)
        except runner_lib.CommandFailed as error:
            runner.say(str(error))
            state = "unknown"
        if runner.dry_run or state == machine.ready:
            return
        if state in machine.preempted:
            raise Preempted(f"{machine.name} was taken away ({state}) before it was ready.")
        if state != "unknown" and state not in machine.coming:
            detail = runner.ask(machine.gcloud("describe"), seconds=_ASK_SECONDS)
            raise StartFailed(f"{machine.name} did not become ready: {state}\n{detail.last_words}")
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{machine.name} is still {state} after {args.wait_minutes:g} minutes: "
                "--wait_minutes waits longer."
            )
        runner.say(f"{machine.name}: {state}")
        runner.sleep(args.poll_seconds)


# --- The run ------------------------------------------------------------------------------------


def _install(runner, args, machine, bundle):
    """The pinned project on every worker."""
    tries = 3
    for attempt in range(tries):
        results = runner.ask_all(machine.scp(bundle, args.connect_flag), seconds=_COPY_SECONDS)
        failed = [result for result in results if result.code != 0]
        if not failed:
            break
        # A machine that is READY may still refuse keys for a while.
        if attempt == tries - 1:
            raise runner_lib.CommandFailed(failed[0])
        runner.sleep(args.poll_seconds)
    script = f"bash keel/worker.sh install {shlex.quote(args.extras)} {source.python_version()}"
    unpack = f"mkdir -p keel && tar -xzf {bundle.name} -C keel && {script}"
    runner.run_all(machine.ssh(unpack, args.connect_flag), seconds=_INSTALL_SECONDS)


def _run(runner, args, machine, started: bool) -> int:
    """Starts the run on all workers, and again while that can help; returns its exit code."""
    remote = shlex.join(
        ["bash", "keel/worker.sh", "start", args.logs or "-", *fit.train_arguments(args)]
    )
    pause = args.poll_seconds
    for restart in range(args.max_restarts + 1):
        try:
            if not (started and restart == 0):
                runner.run_all(machine.ssh(remote, args.connect_flag), seconds=_ASK_SECONDS)
            code = _follow(runner, args, machine)
        except KeyboardInterrupt:
            runner.say("Asking the run to save and end; once more to delete the machine at once.")
            _stop(runner, args, machine)
            _fetch_logs(runner, args, machine)
            raise
        if code not in verdict.RETRYABLE or restart == args.max_restarts:
            return code
        runner.say(
            f"The workers ended with {code}; all start again in {pause:g} s, "
            f"{restart + 1} of at most {args.max_restarts}."
        )
        runner.sleep(pause)
        pause *= 2
    raise AssertionError(args.max_restarts)


def _follow(runner, args, machine) -> int:
    """Waits until all workers have ended; returns the verdict on their exit codes.

    Raises:
      Preempted: the machine was taken away, or said nothing for `--lost_minutes`.
    """
    heard = time.monotonic()
    first_end = None
    num_workers = None
    while True:
        codes = _worker_codes(runner, args, machine)
        now = time.monotonic()
        if runner.dry_run:
            return 0
        if codes is not None and len(codes) == (num_workers or len(codes)):
            heard, num_workers = now, len(codes)
            ended = [code for code in codes if code is not None]
            if len(ended) == len(codes):
                return verdict.combine_exit_codes(ended)
            if ended:
                first_end = first_end or now
                if now - first_end > args.grace_seconds:
                    runner.say(f"{len(ended)} of {len(codes)} workers have ended; the others too.")
                    _stop(runner, args, machine)
                    return verdict.combine_exit_codes(ended)
        else:
            _check_still_there(runner, args, machine, now - heard)
        runner.sleep(args.poll_seconds)


def _worker_codes(runner, args, machine) -> list[int | None] | None:
    """Each worker's exit code, None while it runs; None in all if one could not be reached."""
    results = runner.ask_all(
        machine.ssh("bash keel/worker.sh status", args.connect_flag), seconds=_ASK_SECONDS
    )
    found = [_STATUS.findall(result.stdout) for result in results]
    if any(result.code != 0 for result in results) or not all(found):
        return None
    return [
        None if state == "running" else int(code or exit_codes.HUNG)
        for workers in found
        for _, state, code in workers
    ]


def _check_still_there(runner, args, machine, silent_seconds):
    try:
        state = _state(runner, machine)
    except runner_lib.CommandFailed:
        # This launcher's own connection, maybe.
        state = "unknown"
    runner.say(f"Not all workers answer; {machine.name}: {state or 'gone'}")
    if state is None or state in machine.preempted:
        raise Preempted(f"{machine.name} was taken away ({state or 'gone'}).")
    if silent_seconds > 60 * args.lost_minutes:
        raise Preempted(
            f"{machine.name} ({state}) could not be reached for {args.lost_minutes:g} minutes."
        )


def _stop(runner, args, machine):
    """Asks all workers to save and end, and waits for that a bounded time."""
    remote = f"bash keel/worker.sh stop {args.grace_seconds:.0f}"
    runner.ask_all(
        machine.ssh(remote, args.connect_flag), seconds=args.grace_seconds + _ASK_SECONDS
    )


def _fetch_logs(runner, args, machine):
    """The workers' logs, to RUN_DIR/logs/NODE.log or to `--logs`; a failure is said, no more."""
    remote = (
        f"bash keel/worker.sh ship {shlex.quote(args.logs)}"
        if args.logs
        else ("bash keel/worker.sh log")
    )
    results = runner.ask_all(machine.ssh(remote, args.connect_flag), seconds=_COPY_SECONDS)
    for node, result in zip(machine.nodes, results, strict=True):
        if result.code != 0:
            runner.say(f"The logs of {node} did not all come:\n{result.last_words}")
        if not args.logs and not runner.dry_run:
            runner.write(args.run_dir / "logs" / f"{node}.log", result.stdout)
    runner.say(f"Logs: {args.logs or args.run_dir / 'logs'}")
