"""One process at a time writes to a directory: who holds it, and since when.

The holder's `owner.json` says which process it is. It is a lease, as locks do not reach every file
system (NFS, gs://): the holder renews it, and one who finds a lease that is no longer renewed takes
it over. A process that ended, in whatever way, does not keep the directory from anyone:

- On the same machine the process table decides: a lease whose process has ended is void at once.
- From another machine, a lease counts as abandoned after `ABANDONED_SECONDS` without a renewal, by
  the clock of the one who waits; clocks of two machines are never compared.

Simultaneous starts on one machine take turns (`flock` on the directory), so that one gets it. On
several machines, a lease that does not exist yet is created exclusively where the
file system can do that (NFS). Where it cannot (gs://), and where several take over one abandoned
lease, the last one to write has it: each reads the lease again after `_SETTLE_SECONDS`. A holder
that was frozen for so long that another took over finds that out at its next renewal, at most
`_RENEWAL_SECONDS` after it woke up, and ends; until then both may write.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from keel_jax import errors
from keel_jax.runtime import exit_codes, files, watchdog

FILE = "owner.json"
# Three renewals may fail before a lease counts as abandoned.
_RENEWAL_SECONDS = 10.0
ABANDONED_SECONDS = 35.0
# How long a start waits for a holder on another machine, which a launcher may be ending.
_PATIENCE_SECONDS = 70.0
_SETTLE_SECONDS = 1.0
_POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a directory."""

    # Unique to one claim.
    token: str
    host: str
    # Identity of the machine, or the container, in whose process table `pid` is.
    machine: str
    pid: int
    # When the process was started, in the machine's own units; tells a process from a later one
    # with the same pid.
    process_start: str
    # When the directory was claimed, UTC, for people.
    since: str

    def is_alive(self) -> bool | None:
        """Whether the process exists; None if that cannot be seen from this machine."""
        if self.machine != _machine():
            return None
        return _process_start(self.pid) == self.process_start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


_UNKNOWN = Owner(
    token="", host="an unknown host", machine="", pid=0, process_start="", since="an unknown time"
)


class Claim:
    """Holds a directory while it is entered.

    If another process takes it over nevertheless (see above), this process ends.
    """

    def __init__(self, directory: epath.PathLike):
        """Nothing is written yet.

        Args:
          directory: it exists and can be written to.
        """
        self._path = epath.Path(directory) / FILE
        self._owner = Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()),
            since=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        )
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="ownership", daemon=True)

    def __enter__(self) -> "Claim":
        """Claims the directory; waits for a holder on another machine, which may have crashed.

        Raises:
          UserError: another process holds it.
        """
        was_free = self._taken(None)
        if not was_free:
            self._take_over()
        if not (was_free and _is_local(self._path)):
            time.sleep(_SETTLE_SECONDS)
            if (owner := _read(self._path)) not in (self._owner, None):
                raise self._refusal(owner)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError, errors.UserError):
            if _read(self._path) == self._owner:
                self._path.unlink(missing_ok=True)

    def _taken(self, ended: Owner | None) -> bool:
        """Writes this process's lease if the last one is that of `ended`; whether it did."""
        with _turn(self._path.parent):
            if _read(self._path) != ended:
                return False
            if ended is not None or not _is_local(self._path):
                self._write()
                return True
            try:
                with open(self._path, "x") as file:  # epath has no mode x
                    file.write(_to_json(self._owner))
            except FileExistsError:  # from another machine
                return False
            return True

    def _take_over(self) -> None:
        """Takes the directory once its holder has ended, and refuses while it has not."""
        begin = last_change = time.monotonic()
        last_state, has_said = None, False
        while True:
            owner, now = _read(self._path), time.monotonic()
            is_alive = owner.is_alive() if owner is not None else False
            state = owner, _changed_at(self._path)
            if state != last_state:
                last_state, last_change = state, now
            is_abandoned = now - last_change > ABANDONED_SECONDS
            if (is_abandoned or is_alive is False) and self._taken(owner):
                break
            if owner is not None and (is_alive or now - begin > _PATIENCE_SECONDS):
                raise self._refusal(owner)
            if is_alive is None and not has_said:
                has_said = True
                print(
                    f"{self._path.parent} is held by {owner}: waiting to see whether that is still "
                    "running.",
                    flush=True,
                )
            time.sleep(_POLL_SECONDS)
        if owner is not None and is_alive is None:
            print(f"{owner} no longer renews its claim to {self._path.parent}: taken over.")

    def _refusal(self, owner: Owner | None) -> errors.UserError:
        return errors.UserError(
            f"{self._path.parent} is in use by {owner}: wait for it, stop it, or use another "
            "directory."
        )

    def _write(self) -> None:
        files.write_bytes(self._path, _to_json(self._owner).encode())

    def _renew(self) -> None:
        while not self._closed.wait(_RENEWAL_SECONDS):
            # A disk that is full or away for a while is not a reason to end.
            with contextlib.suppress(OSError):
                owner = _read(self._path)
                if owner == self._owner and _is_local(self._path):
                    os.utime(self._path)  # needs no space
                elif owner in (self._owner, _UNKNOWN, None):
                    self._write()
                else:
                    print(
                        f"error: {owner} has taken over {self._path.parent}, as this process had "
                        "not renewed its claim for long: ending.",
                        file=sys.stderr,
                    )
                    watchdog.leave(exit_codes.ERROR)


def _read(path: epath.Path) -> Owner | None:
    """The holder; None if there is none."""
    try:
        return Owner(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # being written, or damaged
        return _UNKNOWN


@contextlib.contextmanager
def _turn(directory: epath.Path) -> Iterator[None]:
    """Processes of one machine run the body one after another, where the file system has locks."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # gs://
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_local(path: epath.Path) -> bool:
    return "://" not in str(path)


def _changed_at(path: epath.Path) -> float:
    try:
        return path.stat().mtime
    except FileNotFoundError:
        return 0.0


def _to_json(owner: Owner) -> str:
    return json.dumps(dataclasses.asdict(owner), indent=2) + "\n"


def _machine() -> str:
    """Identity of this boot of this machine and of the process table that this process sees."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _process_start(pid: int) -> str:
    """When a process was started, as its system counts; "" if there is none."""
    try:
        # The name in parentheses may contain anything.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if os.path.isdir("/proc/self"):
        return ""
    try:  # not Linux: whether it exists is all there is to know
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "running"
