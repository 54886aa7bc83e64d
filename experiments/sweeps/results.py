"""results.json: every number that an experiment's NOTES.md may quote, and where it comes from."""

import functools
import math
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from keel_jax import errors
from keel_jax.data import shards
from keel_jax.runtime import files, versions

ROOT = pathlib.Path(__file__).parents[2]
FILE = "results.json"
# Six digits are more than any measurement here holds, and keep the files short.
_DIGITS = 6


def write(
    out: pathlib.Path,
    experiment: str,
    preset: str,
    *,
    numbers: dict,
    points: list[dict],
    seconds: float,
    data: shards.TokenSet | None = None,
    registration: Mapping | None = None,
) -> None:
    """Writes `out`/results.json.

    "commit", "versions" and "hardware" are those of the analysing process. Those of the runs, which
    may be from earlier and from other machines, are under "runs".

    Args:
      out: directory, made if need be.
      experiment: package under experiments/.
      preset: "micro", or another of the experiment's.
      numbers: nested plain data; None where there is no number.
      points: one mapping a run, or whatever else the numbers were computed from.
      seconds: wall-clock time of the measurements.
      data: the tokens that the runs were trained on, if any were.
      registration: where the predictions were written before the runs (`registration.verify`).
    """
    environment = versions.describe()
    files.make_writable_directory(out)
    files.write_json(
        pathlib.Path(out) / FILE,
        {
            "experiment": experiment,
            "preset": preset,
            "command": f"python -m experiments.run {experiment} --preset={preset}",
            **source(),
            "versions": environment["packages"],
            "hardware": environment["devices"] | {"cpu": _cpu()},
            "runs": _origins(points),
            "data": _describe_data(data),
            "registration": registration,
            "seconds": round(seconds, 1),
            "numbers": plain(numbers),
            "points": plain(points),
        },
    )


def load(out: pathlib.Path) -> dict:
    """The content of `out`/results.json.

    Raises:
      UserError: there is no such file.
    """
    content = files.read_json(pathlib.Path(out) / FILE)
    if content is None:
        raise errors.UserError(f"{pathlib.Path(out) / FILE} does not exist: run the experiment.")
    return content


def _describe_data(data: shards.TokenSet | None) -> dict | None:
    """What tells whether two results are of the same tokens, and which corpus they are of."""
    if data is None:
        return None
    return {"fingerprint": data.fingerprint, "corpus": data.index["source"]}


def _origins(points: Sequence[Mapping]) -> dict[str, list]:
    """The commits and the devices of the runs, each once, of those points that hold them."""
    return {
        "commits": sorted({point["commit"] for point in points if point.get("commit")}),
        "devices": sorted({point["devices"] for point in points if point.get("devices")}),
    }


@functools.cache
def source() -> dict:
    """The commit of the tree, and whether it is clean.

    Determined once a process, at its first call, as the process runs the code of that moment.
    Results do not count: they lie in the tree, too, and are written meanwhile.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git(
        "status",
        "--porcelain",
        "--untracked-files=all",
        "--",
        ".",
        ":(exclude,glob)experiments/*/results/**",
    )
    return {"commit": commit or None, "is_clean": bool(commit) and not changed}


def has_commit(commit: str) -> bool:
    """Whether this clone has the commit."""
    return _git("cat-file", "-e", f"{commit}^{{commit}}") is not None


def blob(commit: str, file: str) -> str | None:
    """git's name of a file's content at a commit; None where there was none."""
    return _git("rev-parse", "--verify", "--quiet", f"{commit}:{file}")


def blob_of(file: str) -> str | None:
    """The same of the file as it is."""
    return _git("hash-object", "--", file)


def plain(value: Any) -> Any:
    """`value` as JSON holds it: arrays as lists, few digits, null where a number is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str | None:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None
