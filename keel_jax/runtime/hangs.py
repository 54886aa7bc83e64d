"""What a hang leaves behind: the stacks of every process, in its output and in the work directory.

If one process is stuck, the others wait for it in a collective. The first whose time limit is over
says so through the key-value store of `jax.distributed`; every other that shows no sign of life
either then reports, too, and none leaves before all have: the end of one would end the others.
"""

import faulthandler
import os
import socket
import sys
import tempfile
import time

import jax
from etils import epath

from keel_jax.runtime import files, versions

DIRECTORY = "hangs"
# Directories of the key-value store, with one entry per process.
_HANGS, _REPORTED = "keel_jax/hangs", "keel_jax/hangs_reported"
# Longest wait for the reports of the others, who look every few seconds (watchdog.py).
_PEERS_SECONDS = 20.0
# The lead leaves last: the coordination service ends with it, and that aborts the others.
_LEAD_LEAVES_LAST_SECONDS = 2.0


def write_stacks(workdir: epath.PathLike, message: str) -> None:
    """Appends `message` and the Python stacks of all threads to `hangs/process_N.txt`.

    Raises:
      OSError: it cannot be written.
    """
    # faulthandler writes to file descriptors only.
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        stacks = file.read().decode(errors="replace")
    number = jax.process_index()
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    where = (
        f"process {number} of {jax.process_count()}, pid {os.getpid()} on {socket.gethostname()}"
    )
    directory = epath.Path(workdir) / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    text = f"{now}, {where}: {message}\n{stacks}\n"
    files.append_text(directory / f"process_{number}.txt", text)


def announce(message: str) -> None:
    """Tells the other processes that this one hangs."""
    _put(_HANGS, message)


def announced() -> str | None:
    """What a process that hangs has announced, with its number; None if none has."""
    found = sorted(_get(_HANGS).items())
    return f"process {found[0][0]} hangs: {found[0][1]}" if found else None


def wait_for_reports() -> None:
    """Says that this process has reported, and waits for the others, for a limited time."""
    _put(_REPORTED, "")
    deadline = time.monotonic() + _PEERS_SECONDS
    everyone = set(range(jax.process_count()))
    while (missing := everyone - set(_get(_REPORTED))) and time.monotonic() < deadline:
        time.sleep(0.5)
    if missing:
        numbers = ", ".join(map(str, sorted(missing)))
        print(f"no report came from process {numbers} within {_PEERS_SECONDS:g} s", file=sys.stderr)
    if jax.process_index() == 0:
        time.sleep(_LEAD_LEAVES_LAST_SECONDS)


def _put(directory: str, value: str):
    place = f"{directory}/{jax.process_index()}"
    versions.coordination_client().key_value_set(place, value, allow_overwrite=True)


def _get(directory: str) -> dict[int, str]:
    found = versions.coordination_client().key_value_dir_get(directory)
    return {int(key.rsplit("/", 1)[1]): value for key, value in found}
