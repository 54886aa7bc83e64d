"""Prints what a run spent its time on, over all its restarts.

`python -m keel_jax.goodput --workdir=DIR`; docs/goodput.md explains each line.
"""

import json
import sys

from absl import flags
from etils import epath

from keel_jax import errors
from keel_jax.runtime import cli
from keel_jax.training import events, goodput, trials


def load(workdir: epath.PathLike) -> tuple[goodput.Tally, int]:
    """The runs in `workdir`, also that of a trial, and the number of damaged lines of their log.

    Raises:
      UserError: it holds no event log.
    """
    holder = trials.holder(workdir)
    rows, num_bad = events.read(holder)
    if not rows:
        raise errors.UserError(
            f"{holder / events.JSONL} holds no events: it is written by keel_jax.train, as soon as "
            "a run has begun there."
        )
    return goodput.Tally(rows), num_bad


def main(_: list[str]) -> None:
    tally, num_bad = load(_WORKDIR.value)
    if num_bad:
        print(
            f"{num_bad} line(s) of {events.JSONL} are damaged and not counted: a run that is "
            "killed while it writes leaves one.",
            file=sys.stderr,
        )
    print(json.dumps(tally.to_json(), indent=2) if _JSON.value else goodput.to_text(tally))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Of a run, or of a trial.", required=True)
    _JSON = flags.DEFINE_bool("json", False, "Print status.json's summary instead of a table.")
    cli.run(main)
