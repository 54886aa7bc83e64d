"""Runs a command as several processes of this machine, none of which outlives the others.

    python -m launch.group --num_processes=2 -- python -m keel_jax.train --config=… --workdir=…

Each process gets --coordinator_address, --num_processes and --process_id. When one ends with a
code other than 0, the others get --grace_seconds to notice by themselves, then SIGTERM, then
SIGKILL, their children too. The exit code combines all of theirs (launch/combined_exit_code.py).
Their output is passed on, each line after its process's number.
"""

import argparse
import collections.abc
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from typing import IO

from launch import child_processes, combined_exit_code, options

_POLL_SECONDS = 0.05


def run_processes(
    program: collections.abc.Sequence[str],
    num_processes: int,
    *,
    environments: collections.abc.Sequence[dict[str, str]],
    grace_seconds: float,
) -> int:
    """Runs the processes to their end; none of them, and no child of theirs, outlives this call.

    Args:
      program: the command.
      num_processes: how many; the first is the coordinator.
      environments: what each process has in addition to this one's environment.
      grace_seconds: between the first bad end and SIGTERM, and between SIGTERM and SIGKILL.

    Returns:
      Their combined exit code.
    """
    address = f"127.0.0.1:{_free_port()}"
    stop_requests: list[int] = []

    def pass_on(number: int, frame: types.FrameType | None) -> None:
        stop_requests.append(number)
        # SIGTERM for Ctrl-C too: it is what a program of several processes handles
        # (keel_jax/runtime/stop.py).
        for process in processes:
            process.terminate()

    processes: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, pass_on))
        for index in range(num_processes):
            flags = [
                f"--coordinator_address={address}",
                f"--num_processes={num_processes}",
                f"--process_id={index}",
            ]
            process = subprocess.Popen(
                [*program, *flags],
                env={**os.environ, **environments[index]},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            processes.append(process)
            stack.callback(child_processes.end_process_group, process, 0.0)
            readers.append(threading.Thread(target=_forward_lines, args=(index, process.stdout)))
            readers[-1].start()
        _wait(processes, stop_requests, grace_seconds)
    for reader in readers:
        reader.join()
    return combined_exit_code.combine_exit_codes(
        child_processes.shell_exit_code(process.returncode) for process in processes
    )


def _wait(
    processes: collections.abc.Sequence[subprocess.Popen[bytes]],
    stop_requests: collections.abc.Sequence[int],
    grace_seconds: float,
) -> None:
    """Waits until all have ended, or those that are left have been given their time.

    After the first bad end or stop request they have `grace_seconds`, then they get SIGTERM, then
    `grace_seconds` once more; the caller kills them.
    """
    grace_begin = None
    is_terminated = False
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if grace_begin is None and (stop_requests or any(process.poll() for process in processes)):
            grace_begin = now
        if grace_begin is not None and now - grace_begin > grace_seconds:
            if is_terminated:
                return
            is_terminated, grace_begin = True, now
            for process in processes:
                process.terminate()
        time.sleep(_POLL_SECONDS)


def _forward_lines(index: int, stream: IO[bytes]) -> None:
    with stream:
        for line in stream:
            sys.stdout.write(f"[{index}] {line.decode(errors='replace').rstrip()}\n")
            sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process_environments(
    num_processes: int, platform: str, devices_per_process: int
) -> list[dict[str, str]]:
    """What gives each process its own devices: simulated ones on a CPU, or some of the GPUs."""
    if platform == "cpu":
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
        return [
            {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": (flags + str(devices_per_process)).strip()}
        ] * num_processes
    gpus_of_processes = [
        range(index * devices_per_process, (index + 1) * devices_per_process)
        for index in range(num_processes)
    ]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} for gpus in gpus_of_processes]


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Options of processes on one machine."""
    group = parser.add_argument_group("the processes")
    group.add_argument("--num_processes", type=options.positive_int, required=True)
    group.add_argument(
        "--platform",
        choices=("cpu", "gpu"),
        default="cpu",
        help="cpu: simulated devices; gpu: each process gets its share of the GPUs (default: cpu)",
    )
    group.add_argument(
        "--devices_per_process", type=options.positive_int, default=1, help="(default: 1)"
    )
    group.add_argument(
        "--grace_seconds",
        type=options.positive_float,
        default=120.0,
        help="for the others when one has ended badly, and for saving (default: 120)",
    )


def main(argv: collections.abc.Sequence[str]) -> int:
    """Runs the command that is given after --; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_process_options(parser)
    parser.add_argument("program", nargs="+", metavar="COMMAND", help="after --")
    args = parser.parse_args(argv)
    return run_processes(
        args.program,
        args.num_processes,
        grace_seconds=args.grace_seconds,
        environments=process_environments(
            args.num_processes, args.platform, args.devices_per_process
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
