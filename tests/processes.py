"""Programs of several processes on this machine: started, waited for, and killed at the end."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping

from keel_jax import config
from keel_jax.training import logs

ROOT = pathlib.Path(__file__).parents[1]
# No test waits longer for anything, however busy the machine.
LIMIT_SECONDS = 240


@dataclasses.dataclass
class Program:
    """The processes of one program, in the order of their numbers."""

    processes: list[subprocess.Popen]
    outputs: list[pathlib.Path]

    def codes(self) -> list[int]:
        """The exit codes, once all have ended; a death by signal is negative."""
        return [self.code(number) for number in range(len(self.processes))]

    def code(self, number: int) -> int:
        """The exit code of one of them, once it has ended."""
        try:
            return self.processes[number].wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {number} never ended:\n{self.told()}") from None

    def told(self) -> str:
        """What all of them have printed."""
        parts = [f"--- process {n}\n{path.read_text()}" for n, path in enumerate(self.outputs)]
        return "\n".join(parts)

    def wait_for_step(self, workdir: pathlib.Path, step: int) -> None:
        """Waits until the log of the run in `workdir` holds `step`."""
        self.wait_until(lambda: any(row["step"] >= step for row in logs.read(workdir)))

    def wait_until(self, condition) -> None:
        """Waits until `condition()`; every process has to live until then."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            codes = [process.poll() for process in self.processes]
            assert codes == [None] * len(codes), f"ended with {codes}:\n{self.told()}"
            assert time.monotonic() < deadline, f"it never came:\n{self.told()}"
            time.sleep(0.05)


@contextlib.contextmanager
def start(
    module: str,
    flags: list[str],
    directory: pathlib.Path,
    *,
    num_processes: int,
    devices_each: int = 1,
    started: tuple[int, ...] | None = None,
    flags_of: Mapping[int, list[str]] = types.MappingProxyType({}),
    environment_of: Mapping[int, dict[str, str]] = types.MappingProxyType({}),
):
    """Starts `python -m MODULE` as `num_processes` processes; yields the Program.

    Args:
      directory: where their output goes.
      started: the numbers of those that are started; all by default.
      flags_of: flags of single processes, by number, after those of all.
      environment_of: environment variables of single processes, by number.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # A killed service leaves its port in use for a while: every program takes one of its own.
    port = free_port()
    program = Program([], [])
    try:
        for number in range(num_processes) if started is None else started:
            output = directory / f"output-{time.monotonic_ns()}-{number}"
            explicit = [
                f"--coordinator_address=127.0.0.1:{port}",
                f"--num_processes={num_processes}",
                f"--process_id={number}",
            ]
            with output.open("w") as file:
                program.processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            module,
                            *flags,
                            *flags_of.get(number, []),
                            *(explicit if num_processes > 1 else []),
                        ],
                        cwd=ROOT,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "XLA_FLAGS": xla_flags(devices_each)}
                        | environment_of.get(number, {}),
                    )
                )
            program.outputs.append(output)
        yield program
    finally:
        for process in program.processes:
            process.kill()  # a stopped one too
            process.wait()


def run(module: str, flags: list[str], directory: pathlib.Path, **options) -> list[int]:
    """Starts a program as `start` does; the exit codes once it has ended."""
    with start(module, flags, directory, **options) as program:
        return program.codes()


def train_flags(cfg: config.Config, workdir: pathlib.Path) -> list[str]:
    """The flags that train `cfg` in `workdir`."""
    file = workdir.parent / f"{workdir.name}-config-{time.monotonic_ns()}.py"
    file.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict({config.to_dict(cfg)!r})\n"
    )
    return [f"--config={file}", f"--workdir={workdir}"]


def xla_flags(num_devices: int) -> str:
    """The suite's own (conftest.py), with another number of devices."""
    others = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    return " ".join([f"--xla_force_host_platform_device_count={num_devices}", *others])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
