"""What the stand-ins share: files of the directory STANDIN, faults, flags."""

import fcntl
import json
import os
import re

ROOT = os.environ["STANDIN"]
NUM_WORKERS = int(os.environ.get("STANDIN_WORKERS", "1"))


class Refused(Exception):
    """Ends the command: exit code and what it prints."""

    def __init__(self, code: int, stderr: str):
        super().__init__(stderr)
        self.code, self.stderr = code, stderr


def path(*parts: str) -> str:
    """A path in the directory STANDIN."""
    return os.path.join(ROOT, *parts)


def read_text(name: str) -> str:
    with open(name) as file:
        return file.read()


class JsonFile:
    """A JSON file's value, written back at the end of a `with` block; one process at a time."""

    def __init__(self, name: str, default):
        self._path, self._value = path(f"{name}.json"), default

    def __enter__(self):
        self._lock = open(self._path + ".lock", "w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if os.path.exists(self._path):
            self._value = json.loads(read_text(self._path))
        return self._value

    def __exit__(self, *_):
        with open(self._path, "w") as file:
            json.dump(self._value, file)
        self._lock.close()


def next_fault(line: str) -> dict:
    """The first fault that this command line triggers (program.py), which is used up; or {}."""
    with JsonFile("faults", []) as faults:
        for fault in faults:
            if not re.search(fault["match"], line) or fault.get("times", 1) < 1:
                continue
            if fault.get("after", 0) > 0:
                fault["after"] -= 1
                continue
            fault["times"] = fault.get("times", 1) - 1
            return fault
    return {}


def parse_flags(
    argv: list[str], flags: set[str], switches: set[str] | frozenset[str] = frozenset()
) -> tuple[list[str], dict[str, str]]:
    """Words and values of flags; refuses what the real program does not know."""
    words, values = [], {}
    for arg in argv:
        name, equals, value = arg.partition("=")
        if not arg.startswith("-"):
            words.append(arg)
        elif (name in flags and equals) or (name in switches and not equals):
            values[name] = value
        else:
            raise Refused(2, f"ERROR: unrecognized arguments: {arg}")
    return words, values


def require_flags(values: dict[str, str], *names: str) -> None:
    for name in names:
        if name not in values:
            raise Refused(2, f"ERROR: argument {name}: Must be specified.")
