"""The results of all experiments: those that are committed, and directories of one's own."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence

from experiments.sweeps import results
from keel_jax import errors

EXPERIMENTS = pathlib.Path(__file__).parent
PRESETS = ("micro", "deep", "controls", "overnight", "gpu", "small", "paper")


@dataclasses.dataclass(frozen=True)
class ResultSet:
    """The results of one experiment at one preset."""

    directory: pathlib.Path
    # The content of results.json.
    values: dict

    @property
    def key(self) -> tuple[str, str]:
        """Experiment and preset."""
        return self.values["experiment"], self.values["preset"]

    @property
    def seeds(self) -> list:
        return sorted({point["seed"] for point in self.values["points"] if "seed" in point})

    @property
    def missing(self) -> list[str]:
        """Names of the points that failed."""
        return list(self.values["numbers"].get("missing", []))

    @property
    def corpus(self) -> str:
        """What the runs were trained on; losses compare only between results of one corpus."""
        if "data" not in self.values:
            return "not recorded"
        if (data := self.values["data"]) is None:
            return "none recorded"
        corpus = data["corpus"] or {}
        name = corpus.get("package") or corpus.get("name") or "a corpus of one's own"
        return f"{name}, tokens {data['fingerprint'][:8]}"

    @property
    def source(self) -> str:
        """The commit that made it, and whether the tree was clean."""
        commit = (self.values["commit"] or "not known")[:12]
        return commit if self.values["is_clean"] else f"{commit}, changed"


def gather(own: Sequence[pathlib.Path], root: pathlib.Path = EXPERIMENTS) -> list[ResultSet]:
    """The committed results and those under one's own directories, by experiment and preset.

    Results of one's own take the place of committed ones of the same experiment and preset.

    Raises:
      UserError: one of the directories holds no results.
    """
    by_key = {}
    for path in sorted(root.glob(f"*/results/*/{results.FILE}")):
        result_set = ResultSet(path.parent, results.load(path.parent))
        by_key[result_set.key] = result_set
    for directory in own:
        paths = sorted(directory.rglob(results.FILE))
        if not paths:
            raise errors.UserError(
                f"--results={directory}: there is no {results.FILE} in or below it."
            )
        for path in paths:
            result_set = ResultSet(path.parent, results.load(path.parent))
            by_key[result_set.key] = result_set
    return sorted(by_key.values(), key=lambda each: (each.key[0], _rank(each.key[1])))


def not_run(
    result_sets: Sequence[ResultSet], presets: Mapping[str, Collection[str]]
) -> list[tuple[str, str, str]]:
    """(experiment, preset, what is missing) wherever there is no result, or not a complete one.

    Args:
      presets: by experiment, those that should have been run.
    """
    by_key = {each.key: each for each in result_sets}
    rows = [
        (name, preset, "everything")
        for name, wanted in presets.items()
        for preset in wanted
        if (name, preset) not in by_key
    ]
    for (name, preset), each in by_key.items():
        if each.missing:
            count = f"{len(each.missing)} of {len(each.values['points'])} points: "
            rows.append((name, preset, count + ", ".join(each.missing)))
    return sorted(rows, key=lambda row: (row[0], _rank(row[1])))


def _rank(preset: str) -> int:
    """The place of a preset in the order of PRESETS; others come last."""
    return PRESETS.index(preset) if preset in PRESETS else len(PRESETS)
