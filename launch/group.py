"""Runs a command as several processes of this machine that live and die together.

    python -m launch.group --num_processes=2 -- python -m keel_jax.train --config=… --workdir=…

Each process gets --coordinator_address, --num_processes and --process_id. When one ends with
another code than 0, the others get --grace_seconds to notice by themselves, then SIGTERM, then
SIGKILL, their children too. The exit code is the verdict on all of theirs (launch/verdict.py).
Output is passed on, each line after its process's number.
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

from launch import launcher, verdict
from launch import runner as runner_lib

_POLL_SECONDS = 0.05


def run(
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
      environments: what each process has beside this one's environment.
      grace_seconds: between the first bad end and SIGTERM, and between SIGTERM and SIGKILL.
    """
    address = f"127.0.0.1:{_free_port()}"
    asked = []

    def pass_on(number, frame):
        asked.append(number)
        # Ctrl-C too: what a program of several processes listens to is SIGTERM (runtime/stop.py).
        for process in processes:
            process.terminate()

    processes: list[subprocess.Popen] = []
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
            stack.callback(runner_lib.end_group, process, 0.0)
            readers.append(threading.Thread(target=_pass_lines, args=(index, process.stdout)))
            readers[-1].start()
        _wait(processes, asked, grace_seconds)
    for reader in readers:
        reader.join()
    return verdict.combine_exit_codes(
        verdict.of_returncode(process.returncode) for process in processes
    )


def _wait(processes, asked, grace_seconds):
    """Until all have ended, or those that are left have had their time."""
    trouble = None
    told = False
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if trouble is None and (asked or any(process.poll() for process in processes)):
            trouble = now
        if trouble is not None and now - trouble > grace_seconds:
            if told:
                return  # and the caller kills them
            told, trouble = True, now
            for process in processes:
                process.terminate()
        time.sleep(_POLL_SECONDS)


def _pass_lines(index, stream):
    with stream:
        for line in stream:
            sys.stdout.write(f"[{index}] {line.decode(errors='replace').rstrip()}\n")
            sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environments(num_processes: int, platform: str, devices_per_process: int) -> list[dict]:
    """What gives each process its own devices: simulated ones on a CPU, its share of the GPUs."""
    if platform == "cpu":
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count="
        return [
            {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": (flags + str(devices_per_process)).strip()}
        ] * num_processes
    shares = [
        range(index * devices_per_process, (index + 1) * devices_per_process)
        for index in range(num_processes)
    ]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(map(str, share))} for share in shares]


def add_processes(made: argparse.ArgumentParser):
    """Options of processes on one machine."""
    group = made.add_argument_group("the processes")
    group.add_argument("--num_processes", type=launcher.positive, required=True)
    group.add_argument(
        "--platform",
        choices=("cpu", "gpu"),
        default="cpu",
        help="cpu: simulated devices; gpu: each process gets its share of the GPUs (default: cpu)",
    )
    group.add_argument(
        "--devices_per_process", type=launcher.positive, default=1, help="(default: 1)"
    )
    group.add_argument(
        "--grace_seconds",
        type=launcher.positive_float,
        default=120.0,
        help="for the others when one has ended badly, and for saving (default: 120)",
    )


def main(argv: collections.abc.Sequence[str]) -> int:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_processes(made)
    made.add_argument("program", nargs="+", metavar="COMMAND", help="after --")
    args = made.parse_args(argv)
    return run(
        args.program,
        args.num_processes,
        grace_seconds=args.grace_seconds,
        environments=environments(args.num_processes, args.platform, args.devices_per_process),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
