"""A Cloud TPU machine: the gcloud commands about it, its state, creating and deleting it.

What is easy to get wrong, from the source of the Google Cloud SDK (528.0.0,
command_lib/compute/tpus):
  - `queued-resources ssh` skips slices that it could not prepare, and files exit codes by the
    worker's number within its slice. So each slice is reached by `tpu-vm ssh`.
  - `tpu-vm ssh --worker=all` waits for all workers, then exits with the first code that is not 0.
  - `tpu-vm scp` repeats a copy up to ten times; the second copy of a directory would go into what
    the first left. So one file is copied (`source.pack_bundle`).
  - `--valid-until-duration` has no effect without `--valid-after-…`: `create` bounds the wait.
  - `queued-resources delete` refuses one that has nodes, except with `--force`.
"""

import argparse
import collections.abc
import contextlib
import dataclasses
import pathlib
import time

from keel_jax import errors
from launch import paid, slices
from launch import runner as runner_lib

# Bounds on single commands. Creating a large slice has taken quarters of an hour; the hour is a
# guess, as are the others.
_CREATE_SECONDS = 3600
_DELETE_SECONDS = 1200
_DESCRIBE_SECONDS = 120

# Stands for the state when gcloud gave no answer.
_NO_ANSWER = "unknown"


class StartFailed(errors.UserError):
    """The machine did not become ready."""


class Preempted(Exception):
    """The machine was taken away, or cannot be reached any more."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is paid for: one TPU VM, or one queued resource of several slices.

    Attributes:
      kind: gcloud's noun, tpu-vm or queued-resources.
      nodes: names of the TPU VMs in it, one a slice.
      place_flags: say where it is (`place_flags`).
      create_flags: of `gcloud compute tpus KIND create`.
      delete_flags: of `gcloud compute tpus KIND delete`.
      state_field: gcloud's projection of its state.
      ready_state: the state in which its workers can be reached.
      pending_states: those that lead to `ready_state`.
      preempted_states: those that mean that it was taken away. Any other state is a failure.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    place_flags: tuple[str, ...]
    create_flags: tuple[str, ...]
    delete_flags: tuple[str, ...]
    state_field: str
    ready_state: str
    pending_states: frozenset[str]
    preempted_states: frozenset[str]

    def gcloud(self, verb: str, *flags: str) -> list[str]:
        """A command about it as a whole."""
        tpus = ["gcloud", "compute", "tpus", self.kind, verb, self.name]
        return [*tpus, *self.place_flags, *flags, "--quiet"]

    def ssh(
        self, remote: str, connect_flags: collections.abc.Sequence[str] = ()
    ) -> list[list[str]]:
        """A command for each slice that runs `remote` on all its workers."""
        tpu_vm = ["gcloud", "compute", "tpus", "tpu-vm"]
        flags = ["--worker=all", *connect_flags, f"--command={remote}", "--quiet"]
        return [[*tpu_vm, "ssh", node, *self.place_flags, *flags] for node in self.nodes]

    def scp(
        self, path: pathlib.Path, connect_flags: collections.abc.Sequence[str] = ()
    ) -> list[list[str]]:
        """A command for each slice that copies a file to the home directory of all its workers."""
        scp = ["gcloud", "compute", "tpus", "tpu-vm", "scp", str(path)]
        flags = ["--worker=all", *connect_flags, "--quiet"]
        return [[*scp, f"{node}:", *self.place_flags, *flags] for node in self.nodes]

    @property
    def delete_command(self) -> list[str]:
        return self.gcloud("delete", *self.delete_flags)


def place_flags(args: argparse.Namespace) -> tuple[str, ...]:
    """Flags that say where a machine is."""
    return (f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else []))


def accelerator_type(args: argparse.Namespace) -> str:
    """gcloud's name of --topology."""
    return slices.parse(args.topology).accelerator_type


def software_version(args: argparse.Namespace) -> str:
    """The software version of the machines, which gcloud can create (`accelerator_type`)."""
    version = args.software or slices.parse(args.topology).generation.software
    assert version is not None, args.topology  # None only where `accelerator_type` raises
    return version


def query_state(runner: runner_lib.Runner, machine: Machine) -> str | None:
    """The machine's state, or None if it does not exist.

    Raises:
      runner.CommandFailed: gcloud gave no answer.
    """
    result = runner.try_run(
        machine.gcloud("describe", f"--format=value({machine.state_field})"),
        seconds=_DESCRIBE_SECONDS,
    )
    if result.code != 0:
        if "NOT_FOUND" in result.stderr:
            return None
        raise runner_lib.CommandFailed(result)
    return result.stdout.strip() or (None if runner.dry_run else "UNKNOWN")


def deleted_at_end(
    runner: runner_lib.Runner, args: argparse.Namespace, machine: Machine
) -> paid.Scope:
    """A scope in which the machine may exist."""

    def delete_once() -> bool:
        runner.try_run(machine.delete_command, seconds=_DELETE_SECONDS)
        # Its exit code is no evidence: a deletion also fails if an earlier one has succeeded.
        with contextlib.suppress(runner_lib.CommandFailed):
            return query_state(runner, machine) is None
        return False

    return paid.resource(
        runner,
        f"{machine.kind} {machine.name}",
        delete_once=delete_once,
        delete_command=machine.delete_command,
        inspect_command=machine.gcloud("describe"),
        args=args,
    )


def create(runner: runner_lib.Runner, args: argparse.Namespace, machine: Machine) -> None:
    """Creates the machine and waits until it is ready, --wait_minutes at most.

    Raises:
      NotOurs: it was created by someone else in the meantime.
      Preempted: it was taken away before it was ready.
      StartFailed: it failed, or is not ready in time.
      runner.CommandFailed: the request was refused.
    """
    deadline = time.monotonic() + 60 * args.wait_minutes
    result = runner.try_run(
        machine.gcloud("create", *machine.create_flags, *args.create_flag),
        seconds=min(_CREATE_SECONDS, 60 * args.wait_minutes),
    )
    if "ALREADY_EXISTS" in result.stderr:
        raise paid.NotOurs(f"Someone else has just created it:\n{result.output_tail}")
    if result.code != 0:
        raise runner_lib.CommandFailed(result)
    while True:
        try:
            state = query_state(runner, machine)
        except runner_lib.CommandFailed as error:
            runner.say(str(error))
            state = _NO_ANSWER
        if runner.dry_run or state == machine.ready_state:
            return
        if state in machine.preempted_states:
            raise Preempted(f"{machine.name} was taken away ({state}) before it was ready.")
        if state != _NO_ANSWER and state not in machine.pending_states:
            details = runner.try_run(machine.gcloud("describe"), seconds=_DESCRIBE_SECONDS)
            raise StartFailed(
                f"{machine.name} did not become ready: {state}\n{details.output_tail}"
            )
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{machine.name} is still {state} after {args.wait_minutes:g} minutes: "
                "--wait_minutes waits longer."
            )
        runner.say(f"{machine.name}: {state}")
        runner.sleep(args.poll_seconds)


def check_exists(
    runner: runner_lib.Runner, args: argparse.Namespace, machine: Machine, silent_seconds: float
) -> None:
    """Asks gcloud about a machine whose workers have not answered for `silent_seconds`.

    Raises:
      Preempted: it was taken away, or its workers have been silent for --lost_minutes.
    """
    try:
        state = query_state(runner, machine)
    except runner_lib.CommandFailed:
        # The launcher's own connection may have failed.
        state = _NO_ANSWER
    runner.say(f"Not all workers answer; {machine.name}: {state or 'gone'}")
    if state is None or state in machine.preempted_states:
        raise Preempted(f"{machine.name} was taken away ({state or 'gone'}).")
    if silent_seconds > 60 * args.lost_minutes:
        raise Preempted(
            f"{machine.name} ({state}) could not be reached for {args.lost_minutes:g} minutes."
        )
