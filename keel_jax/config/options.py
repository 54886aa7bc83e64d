"""An option's field: its default, and what a change of its value changes."""

import dataclasses
import enum
import typing


class Change(enum.Enum):
    """What another value of an option means to a run, the gravest first."""

    # Other parameters, or another function of them: no weights can be carried over.
    MODEL = enum.auto()
    # The same parameters, but what a started run has done would mean something else.
    RUN = enum.auto()
    # A started run may take it up; what it writes down is different from then on.
    RESULTS = enum.auto()
    # How it is computed or where it lies: the same results, up to rounding.
    NOTHING = enum.auto()


def option(
    default: typing.Any, change: Change, *, baseline: typing.Any = dataclasses.MISSING
) -> typing.Any:
    """A dataclass's field for one option.

    Args:
      change: what another value of it changes.
      baseline: the value that stands for runs from before the option was there; the default,
        unless that has changed since. Digests of a run's options leave out an option that is at
        its baseline, so a new option leaves them as they were.
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
    """What another value of this option changes."""
    return field.metadata["change"]
