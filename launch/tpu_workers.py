"""The workers of a Cloud TPU machine: install, start, follow and stop the run, fetch the logs.

Each worker has a supervisor (worker.sh, supervise.sh), so that the run does not depend on this
launcher's connection; the launcher asks for its status now and then.
"""

import argparse
import pathlib
import re
import shlex
import time

from keel_jax.runtime import exit_codes
from launch import combined_exit_code, options, source, tpu_machine
from launch import runner as runner_lib

# Bounds on single commands.
_CONNECT_SECONDS = 120
_COPY_SECONDS = 600
_INSTALL_SECONDS = 1800
_COPY_TRIES = 3

# A line of `worker.sh status`.
_STATUS = re.compile(r"^keel-worker (\S+) (installed|absent|running|exited (\d+))$", re.MULTILINE)


def install(
    runner: runner_lib.Runner,
    args: argparse.Namespace,
    machine: tpu_machine.Machine,
    bundle: pathlib.Path,
) -> None:
    """Installs the pinned project on every worker.

    Raises:
      runner.CommandFailed: copying or installing failed on a worker.
    """
    copy = machine.scp(bundle, args.connect_flag)
    for attempt in range(_COPY_TRIES):
        results = runner.try_run_all(copy, seconds=_COPY_SECONDS)
        failed = [result for result in results if result.code != 0]
        if not failed:
            break
        # A machine that is ready may still refuse keys for a while.
        if attempt == _COPY_TRIES - 1:
            raise runner_lib.CommandFailed(failed[0])
        runner.sleep(args.poll_seconds)
    script = f"bash keel/worker.sh install {shlex.quote(args.extras)} {source.python_version()}"
    unpack = f"mkdir -p keel && tar -xzf {bundle.name} -C keel && {script}"
    runner.run_all(machine.ssh(unpack, args.connect_flag), seconds=_INSTALL_SECONDS)


def run_to_end(
    runner: runner_lib.Runner,
    args: argparse.Namespace,
    machine: tpu_machine.Machine,
    is_started: bool,
) -> int:
    """Starts the run on all workers unless it `is_started`, again while that can help.

    Returns the run's exit code. Ctrl-C asks the run to save before it is passed on.

    Raises:
      Preempted: the machine was taken away, or its workers have been silent for --lost_minutes.
      runner.CommandFailed: a worker could not be started.
    """
    start = shlex.join(
        ["bash", "keel/worker.sh", "start", args.logs or "-", *options.train_arguments(args)]
    )
    pause = args.poll_seconds
    for restart in range(args.max_restarts + 1):
        try:
            if not (is_started and restart == 0):
                runner.run_all(machine.ssh(start, args.connect_flag), seconds=_CONNECT_SECONDS)
            code = _follow(runner, args, machine)
        except KeyboardInterrupt:
            runner.say(
                "Asking the run to save and end; press Ctrl-C once more to delete the machine "
                "without waiting for that."
            )
            _stop(runner, args, machine)
            fetch_logs(runner, args, machine)
            raise
        if code not in combined_exit_code.RETRYABLE or restart == args.max_restarts:
            return code
        runner.say(
            f"The workers ended with {code}; all start again in {pause:g} s, "
            f"{restart + 1} of at most {args.max_restarts}."
        )
        runner.sleep(pause)
        pause *= 2
    raise AssertionError(args.max_restarts)


def _follow(
    runner: runner_lib.Runner, args: argparse.Namespace, machine: tpu_machine.Machine
) -> int:
    """Waits until all workers have ended; returns their combined exit code.

    Once the first has ended, the others get --grace_seconds before they are stopped.
    """
    last_answer = time.monotonic()
    first_end = None
    num_workers = None
    while True:
        codes = _worker_codes(runner, args, machine)
        now = time.monotonic()
        if runner.dry_run:
            return exit_codes.DONE
        if codes is not None and len(codes) == (num_workers or len(codes)):
            last_answer, num_workers = now, len(codes)
            ended = [code for code in codes if code is not None]
            if len(ended) == len(codes):
                return combined_exit_code.combine_exit_codes(ended)
            if ended:
                first_end = first_end or now
                if now - first_end > args.grace_seconds:
                    runner.say(
                        f"{len(ended)} of {len(codes)} workers have ended; stopping the others."
                    )
                    _stop(runner, args, machine)
                    return combined_exit_code.combine_exit_codes(ended)
        else:
            tpu_machine.check_exists(runner, args, machine, now - last_answer)
        runner.sleep(args.poll_seconds)


def _worker_codes(
    runner: runner_lib.Runner, args: argparse.Namespace, machine: tpu_machine.Machine
) -> list[int | None] | None:
    """Each worker's exit code, or None while it runs; no list if one could not be reached."""
    results = runner.try_run_all(
        machine.ssh("bash keel/worker.sh status", args.connect_flag), seconds=_CONNECT_SECONDS
    )
    statuses_of_slices = [_STATUS.findall(result.stdout) for result in results]
    if any(result.code != 0 for result in results) or not all(statuses_of_slices):
        return None
    return [
        None if state == "running" else int(code or exit_codes.HUNG)
        for statuses in statuses_of_slices
        for _, state, code in statuses
    ]


def _stop(
    runner: runner_lib.Runner, args: argparse.Namespace, machine: tpu_machine.Machine
) -> None:
    """Asks all workers to save and end, and waits for that a bounded time."""
    stop = f"bash keel/worker.sh stop {args.grace_seconds:.0f}"
    runner.try_run_all(
        machine.ssh(stop, args.connect_flag), seconds=args.grace_seconds + _CONNECT_SECONDS
    )


def fetch_logs(
    runner: runner_lib.Runner, args: argparse.Namespace, machine: tpu_machine.Machine
) -> None:
    """The workers' logs, to RUN_DIR/logs/NODE.log or to --logs; a failure is only reported."""
    if args.logs:
        remote = f"bash keel/worker.sh ship {shlex.quote(args.logs)}"
    else:
        remote = "bash keel/worker.sh log"
    results = runner.try_run_all(machine.ssh(remote, args.connect_flag), seconds=_COPY_SECONDS)
    for node, result in zip(machine.nodes, results, strict=True):
        if result.code != 0:
            runner.say(f"Not all logs of {node} could be fetched:\n{result.output_tail}")
        if not args.logs and not runner.dry_run:
            runner.write(args.run_dir / "logs" / f"{node}.log", result.stdout)
    runner.say(f"Logs: {args.logs or args.run_dir / 'logs'}")
