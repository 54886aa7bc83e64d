"""Several processes of one program: how they find each other, agree, and detect a lost process.

The lead is process 0: it hosts the coordination service of `jax.distributed`, and only it writes
files that exist once. docs/processes.md says what happens if a process dies, hangs or never joins.
"""

import collections.abc
import contextlib
import dataclasses
import re
import socket
import sys
import time

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from keel_jax import errors
from keel_jax.runtime import cli, exit_codes, versions, watchdog

MODES = ("auto", "on", "off")
# Longest wait for the others at the end: they may differ by the time of a last save.
_SHUTDOWN_SECONDS = 60
# How long the lead waits after an error of its own, so that the others can print theirs: the
# coordination service ends with it, and every process connected to the service is aborted.
_LEAD_LEAVES_LAST_SECONDS = 3.0

# Statuses of errors that the runtime raises when a peer or the connection to it is lost.
_LOST = re.compile(r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b")
# Statuses that can mean this or something else, and the words that decide which.
_UNCLEAR = re.compile(r"(UNKNOWN|INTERNAL|FAILED_PRECONDITION|DATA_LOSS)\b")
_WORDS = re.compile(
    r"gloo|nccl|rccl|megascale|collective|connection|peer|remote|heartbeat|coordination|barrier"
    r"|preempt|rendezvous|socket",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How this process joins a program of several.

    Raises:
      UserError: options that contradict each other; the message names a remedy.
    """

    # One of MODES; "auto": if flags or environment describe several processes.
    mode: str = "auto"
    # HOST:PORT of process 0, the number of processes, and this one's index: all three or none.
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    # Longest wait for the others at the start.
    initialization_timeout_seconds: int = 300
    # Time without a heartbeat after which a process counts as dead.
    heartbeat_timeout_seconds: int = 60

    def __post_init__(self):
        explicit = {
            f"--{name}": getattr(self, name)
            for name in ("coordinator_address", "num_processes", "process_id")
        }
        missing = [name for name, value in explicit.items() if value is None]
        if self.is_explicit and missing:
            given = ", ".join(f"{n}={v}" for n, v in explicit.items() if v is not None)
            raise errors.UserError(
                f"{given} without {', '.join(missing)}: give all three, or none if TPU, Slurm "
                "or MPI provide them."
            )
        if self.is_explicit and self.mode == "off":
            raise errors.UserError(
                f"--distributed=off contradicts --num_processes={self.num_processes}: leave out "
                "one of them."
            )
        if self.num_processes is None or self.process_id is None or not self.coordinator_address:
            return
        if self.num_processes < 1 or not 0 <= self.process_id < self.num_processes:
            raise errors.UserError(
                f"--process_id={self.process_id} is not one of --num_processes="
                f"{self.num_processes}: they count from 0."
            )
        if not re.fullmatch(r".+:\d+", self.coordinator_address):
            raise errors.UserError(
                f"--coordinator_address={self.coordinator_address} is not HOST:PORT, as in "
                "10.0.0.1:8476."
            )

    @property
    def is_explicit(self) -> bool:
        given = (self.coordinator_address, self.num_processes, self.process_id)
        return any(value is not None for value in given)


def define_flags() -> None:
    """The flags of an entry point that may run in several processes."""
    default = Options()
    flags.DEFINE_enum(
        "distributed",
        default.mode,
        MODES,
        "Whether this is one process of several; auto: if the flags or the environment (TPU, "
        "Slurm, MPI) say so.",
    )
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", None, "Processes of the program.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
    flags.DEFINE_integer(
        "initialization_timeout_seconds",
        default.initialization_timeout_seconds,
        "Longest wait for the other processes at the start.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "heartbeat_timeout_seconds",
        default.heartbeat_timeout_seconds,
        "Time without a heartbeat after which a process counts as dead.",
        lower_bound=1,
    )


def from_flags() -> Options:
    """The options that the flags set."""
    values = flags.FLAGS
    return Options(
        mode=values.distributed,
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes,
        process_id=values.process_id,
        initialization_timeout_seconds=values.initialization_timeout_seconds,
        heartbeat_timeout_seconds=values.heartbeat_timeout_seconds,
    )


def start(options: Options) -> None:
    """Joins the program of several processes, if this is one; before anything touches a device.

    If the others have not joined after `initialization_timeout_seconds`, the process ends with
    `exit_codes.HUNG`; nothing has been written yet.

    Raises:
      UserError: --distributed=on although nothing describes the processes; several processes with
        --distributed=off, or without the preemption service.
    """
    processes = _find(options) if options.mode != "off" else None
    # A program of one process needs no coordination service.
    if processes is not None and processes.num_processes > 1:
        _join(options, processes)
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise errors.UserError(
            f"This is one of {jax.process_count()} processes, which --distributed=off keeps from "
            "finding each other: leave it out."
        )


@contextlib.contextmanager
def program(options: Options) -> collections.abc.Iterator[None]:
    """Runs the body as one process of the program that `start` joins.

    If there are several processes, one that fails prints its error and exits at once: cleaning up
    would wait for peers that wait for it. An error caused by a lost peer ends with
    `exit_codes.HUNG`.
    """
    start(options)
    try:
        yield
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        code = exit_code(error)
        if code == exit_codes.HUNG:
            print(f"error: a peer was lost or does not answer: {error}", file=sys.stderr)
        else:
            cli.print_error(error)
            if is_lead():
                sys.stderr.flush()
                time.sleep(_LEAD_LEAVES_LAST_SECONDS)
        watchdog.leave(code)


def _find(options: Options) -> versions.Processes | None:
    """The processes according to the flags, or else the environment; None if neither says."""
    if options.is_explicit:
        # All three are given, or `Options` would have refused them.
        assert options.coordinator_address is not None
        assert options.num_processes is not None and options.process_id is not None
        return versions.Processes(
            options.coordinator_address, options.num_processes, options.process_id
        )
    seconds = options.initialization_timeout_seconds
    message = f"the environment did not say within {seconds} s what the processes are"
    try:
        # JAX's own timeout, for a name that does not resolve yet, is a little longer.
        with watchdog.deadline(seconds, lambda: message):
            processes = versions.detect_processes(seconds + 60)
    except Exception as error:
        # A platform's metadata server may fail in any way.
        cause = f"{type(error).__name__}: {error}"
        if options.mode == "on":
            raise errors.UserError(
                f"--distributed=on, but the environment could not be read ({cause}): give "
                "--coordinator_address, --num_processes and --process_id."
            ) from error
        print(f"a single process: the environment could not be read ({cause})", file=sys.stderr)
        return None
    if processes is None and options.mode == "on":
        raise errors.UserError(
            "--distributed=on, but neither TPU nor Slurm nor MPI describes the processes: "
            "give --coordinator_address, --num_processes and --process_id."
        )
    return processes


def _join(options: Options, processes: versions.Processes) -> None:
    address, num_processes, process_id, local_device_ids = processes
    if not jax.config.jax_enable_preemption_service:  # pyright: ignore[reportAttributeAccessIssue]: JAX defines it at run time
        raise errors.UserError(
            "JAX_ENABLE_PREEMPTION_SERVICE=0 would let SIGTERM kill one process of "
            f"{num_processes} with nothing saved: unset it."
        )
    seconds = options.initialization_timeout_seconds

    def message() -> str:
        others = num_processes - 1
        if process_id == 0:
            missing = f"not all of the {others} other processes came to {address}"
        elif _answers(address):
            missing = (
                f"the lead at {address} answers, but not all of the {others} other processes came"
            )
        else:
            missing = f"the lead, process 0, does not answer at {address}"
        return (
            f"process {process_id} of {num_processes} waited {seconds} s for the others: {missing}"
        )

    # CPU devices of several processes need gloo; other platforms have their own collectives.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    with watchdog.deadline(seconds, message):
        if process_id == 0:
            _wait_for_port(address)
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            local_device_ids,
            cluster_detection_method="deactivate",
            # Longer than our own deadline, whose message is clearer: after this one JAX aborts.
            initialization_timeout=seconds + 60,
            heartbeat_timeout_seconds=options.heartbeat_timeout_seconds,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
        # This is the first call that exchanges the devices of all processes.
        num_joined = jax.process_count()
    if num_joined != num_processes:
        raise errors.UserError(
            f"{num_processes} processes were started, but their devices form {num_joined}: each "
            "needs a device of its own."
        )


def _wait_for_port(address: str) -> None:
    """Waits until the coordinator's port is free: JAX's service crashes on a port in use, and the
    process of a previous run may not have ended yet."""
    port = int(address.rsplit(":", 1)[1])
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("", port))
                return
        time.sleep(0.5)


def _answers(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def is_lead() -> bool:
    """Whether this is process 0, which writes the files that exist once."""
    return jax.process_index() == 0


def from_lead(*values: int) -> tuple[int, ...]:
    """The lead's `values`, on every process: a network file system may show others an older state.

    A collective: every process calls it, with equally many values.
    """
    agreed = multihost_utils.broadcast_one_to_all(np.asarray(values, np.int32))
    return tuple(int(value) for value in agreed)


def from_all(value: int) -> list[int]:
    """Every process's `value`, in the order of processes, on every process. A collective."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.asarray(value, np.int32)).tolist()


def exit_code(error: BaseException) -> int:
    """`HUNG` for an error with a lost peer in its chain of causes; else that of `cli.exit_code`."""
    several = jax.distributed.is_initialized()
    if several and any(map(_is_loss, _chain(error))):
        return exit_codes.HUNG
    return cli.exit_code(error)


def _chain(error: BaseException | None) -> collections.abc.Iterator[BaseException]:
    """The error, and the errors that caused it."""
    visited = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_loss(error: BaseException) -> bool:
    # gloo's failures are plain ValueErrors.
    if not isinstance(error, (jax.errors.JaxRuntimeError, ValueError, RuntimeError)):
        return isinstance(error, TimeoutError)
    text = str(error)
    return bool(_LOST.match(text) or (_UNCLEAR.match(text) and _WORDS.search(text)))
