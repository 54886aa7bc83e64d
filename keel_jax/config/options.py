"""An option's field: its default, and what changing its value affects."""

import dataclasses
import enum
import typing


class Change(enum.Enum):
    """What changing an option affects, in order of decreasing severity."""

    # Different parameters, or a different function of them: weights cannot be reused.
    MODEL = enum.auto()
    # The same parameters, but a started run would no longer be the same run.
    RUN = enum.auto()
    # A started run may adopt the new value; its results differ from then on.
    RESULTS = enum.auto()
    # How or where the run is computed: the same results, up to rounding.
    NOTHING = enum.auto()


def option(
    default: typing.Any, change: Change, *, baseline: typing.Any = dataclasses.MISSING
) -> typing.Any:
    """A dataclass's field for one option.

    Args:
      change: what changing its value affects.
      baseline: the value that runs from before the option existed are taken to have; the default,
        unless that has changed since. Digests of a run's options leave out an option that is at
        its baseline, so a new option does not change them.
    """
    baseline = default if baseline is dataclasses.MISSING else baseline
    return dataclasses.field(default=default, metadata={"change": change, "baseline": baseline})


def fields(cls: typing.Any, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Every option of a tree of dataclasses, by its dotted name."""
    by_name = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            by_name |= fields(field.type, f"{prefix}{field.name}.")
        else:
            by_name[prefix + field.name] = field
    return by_name


def change_of(field: dataclasses.Field) -> Change:
    """What changing this option affects."""
    return field.metadata["change"]
