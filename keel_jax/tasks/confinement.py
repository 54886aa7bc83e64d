"""Runs model-written Python programs, confined in a process of their own, on Linux alone.

What answers do by accident or by design, and what stops it here:

    runs for ever, sleeps           the wall clock, and RLIMIT_CPU; SIGKILL, which nothing ignores
    takes memory                    RLIMIT_AS: there is one process, so this bounds all of it
    starts processes                seccomp: none can be started, so none can outlive the program
    opens a socket                  seccomp: there are none of any family, and no io_uring
    writes outside of its scratch   Landlock; seccomp for modes, times and attributes
    directory, reads your files     Landlock: it reads Python, the system's libraries, its scratch
    fills the disk                  RLIMIT_FSIZE for each file; all are counted while it runs
    signals or traces others        seccomp: only itself; ids are compared
    ends early with code 0          a secret that is written at the end alone (`confined_run`)
    floods its output               it goes to /dev/null

HumanEval's `execution.py`, from which the harnesses of bigcode and EleutherAI (by way of the metric
`code_eval`) derive, sets functions such as `os.kill` to None in the process that also keeps the
score and deletes the files, and says that this is no sandbox: a program gets the functions back by
reloading the module; its memory limit is off unless asked for; child processes and threads outlive
it; files and sockets are open to it; and it can catch the exception that ends its time.

Everything here works for an ordinary user and without namespaces, which many systems refuse to
ordinary users (Ubuntu's AppArmor) and to containers; and what is the same everywhere is what the
tests have seen. Where the kernel lacks one of the two mechanisms, nothing is run.
"""

import base64
import dataclasses
import json
import os
import pathlib
import platform
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

from keel_jax import errors
from keel_jax.tasks import syscall_filter

# The user "nobody" of Debian and most others; it need not exist.
_NOBODY = 65534
# Files that a program may have in its scratch directory, and open at the same time.
_NUM_FILES = 32
# Until the interpreter is ready; the program's own time begins then.
_START_SECONDS = 60
_LOOK_SECONDS = 0.02
_REPORT_BYTES = 4096
_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/urandom", "/dev/zero")
_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use. It can start no processes, but threads."""

    # Of the wall clock, from the program's first line.
    seconds: float = 5.0
    # Address space, the interpreter's included, of which Python itself needs about 20 MB.
    memory_bytes: int = 512 << 20
    # Of each file, and of all files together.
    file_bytes: int = 16 << 20


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a program ran to its end, and if not, why."""

    passed: bool
    reason: str


def check(*, allow_root: bool = False) -> None:
    """Checks that programs can be confined here; call it before any work.

    Raises:
      UserError: not on this system, or not as root unless `allow_root`.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in syscall_filter.ARCHITECTURES:
        raise errors.UserError(
            f"Programs cannot be confined on {sys.platform} ({machine}): this needs seccomp and "
            f"Landlock, on Linux on {' or '.join(syscall_filter.ARCHITECTURES)}. Score the answers "
            "there; they are not run without."
        )
    if os.geteuid() == 0 and not allow_root:
        raise errors.UserError(
            "Model-written programs are not run as root. Run as another user, or allow root: the "
            f"programs then run as user {_NOBODY} (nobody)."
        )


def run(program: str, limits: Limits = Limits(), *, allow_root: bool = False) -> Verdict:
    """Runs a program and its tests, one text, and says whether it reached its end.

    It has the standard library alone, an empty environment, the hash seed 0 and an empty working
    directory, in which it can make files and no directories; all of it is gone afterwards.

    Args:
      allow_root: as root, run the program as the user nobody.

    Raises:
      UserError: the process cannot be confined here; the program has not been run.
    """
    check(allow_root=allow_root)
    user_id = _NOBODY if os.geteuid() == 0 else None
    scratch = tempfile.mkdtemp(prefix="keel_confined_")
    try:
        if user_id is not None:
            os.chown(scratch, user_id, user_id)
        return _run(program, limits, scratch, user_id)
    finally:
        shutil.rmtree(scratch)


def _run(program: str, limits: Limits, scratch: str, user_id: int | None) -> Verdict:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_HERE / "confined_start.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    secret = secrets.token_bytes(32)
    try:
        order = _order(limits, scratch, user_id, process.pid)
        source = program.encode(errors="surrogatepass")
        try:
            with process.stdin:
                for part in (order, source):
                    process.stdin.write(struct.pack("=I", len(part)) + part)
                process.stdin.write(secret)
        except BrokenPipeError:
            pass  # it has ended, and its report says why
        report, stopped = _follow(process.stdout.fileno(), limits, scratch)
    finally:
        # There are no others: it cannot have started any.
        process.kill()
        process.wait()
        process.stdout.close()
    return _verdict(report, stopped, secret, process.returncode)


def _order(limits: Limits, scratch: str, user_id: int | None, pid: int) -> bytes:
    """What `confined_start` is to do, JSON."""
    python = pathlib.Path(os.path.realpath(sys.executable))
    prefix = python.parents[1]
    cpu_seconds = int(limits.seconds) + 2
    order = {
        "parent_id": os.getpid(),
        "user_id": user_id,
        "scratch": scratch,
        "interpreter_dir": str(prefix),
        "interpreter": str(python.relative_to(prefix)),
        # -P -s -E as of -I, but for the hash seed.
        "arguments": ["-P", "-s", "-S", "-B", "-c", (_HERE / "confined_run.py").read_text()],
        "environment": {"PYTHONHASHSEED": "0", "TMPDIR": scratch, "LANG": "C.UTF-8"},
        "readable": [str(prefix), sys.base_prefix, *_LIBRARIES],
        "limits": {
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_CPU": cpu_seconds,
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_NOFILE": _NUM_FILES,
            "RLIMIT_CORE": 0,
        },
        "filter": base64.b64encode(syscall_filter.program(platform.machine(), pid)).decode(),
    }
    return json.dumps(order).encode()


def _follow(report_fd: int, limits: Limits, scratch: str) -> tuple[bytes, str]:
    """What the process reports until it ends, and why it was stopped, if it was."""
    report, deadline, is_ready = b"", time.monotonic() + _START_SECONDS, False
    while len(report) < _REPORT_BYTES:
        if not is_ready and report.startswith(b"ready\n"):
            is_ready, deadline = True, time.monotonic() + limits.seconds
        if time.monotonic() > deadline:
            return report, f"did not end within {limits.seconds:g} s" if is_ready else ""
        if reason := _overfull(scratch, limits):
            return report, reason
        if select.select([report_fd], [], [], _LOOK_SECONDS)[0]:
            more = os.read(report_fd, _REPORT_BYTES)
            if not more:
                break
            report += more
    return report, ""


def _overfull(scratch: str, limits: Limits) -> str:
    """Why the files are too much, if they are."""
    num_files = num_bytes = 0
    for entry in os.scandir(scratch):
        num_files += 1
        try:
            num_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue  # removed meanwhile
    if num_bytes > limits.file_bytes:
        return f"wrote more than {limits.file_bytes} bytes"
    return f"made more than {_NUM_FILES} files" if num_files > _NUM_FILES else ""


def _verdict(report: bytes, stopped: str, secret: bytes, code: int) -> Verdict:
    start, ready, outcome = report.partition(b"ready\n")
    if start or not ready:
        raise errors.UserError(
            "A program could not be confined, and was not run: "
            f"{start.decode(errors='replace') or f'no answer from the process (code {code})'}. "
            "This needs Linux 5.13 or newer with Landlock and seccomp, and an interpreter in a "
            "directory that everybody may read."
        )
    if outcome == secret:
        return Verdict(True, "passed")
    if stopped:
        return Verdict(False, stopped)
    if outcome.startswith(b"failed "):
        return Verdict(False, outcome.removeprefix(b"failed ").decode(errors="replace"))
    if code < 0 and code != -signal.SIGKILL:
        return Verdict(False, f"was ended by {signal.Signals(-code).name}")
    return Verdict(False, "ended before its last line")
