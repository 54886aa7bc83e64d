"""Limits of single options; see `config`."""

import difflib
import typing

from keel_jax import errors

# What a run computes with its options is float32 at most, in which larger ones are infinite.
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


def one_of(name: str, value: str, allowed: typing.Sequence[str]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)[0]
        raise errors.UserError(
            f"{name}={value!r} is not known. Did you mean {near!r}? All: {', '.join(allowed)}."
        )


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise errors.UserError(f"{name}={value} must be at least {least}.")
    if value >= 2**63:
        raise errors.UserError(f"{name}={value} must be below 2^63.")


def finite(name: str, value: float) -> None:
    if not abs(value) <= _LARGEST_FLOAT32:  # NaN fails too
        raise errors.UserError(
            f"{name}={value} must be a finite number, at most {_LARGEST_FLOAT32:.2g}, float32's "
            "largest."
        )


def positive(name: str, value: float) -> None:
    finite(name, value)
    if value <= 0:
        raise errors.UserError(f"{name}={value} must be positive.")


def not_negative(name: str, value: float) -> None:
    finite(name, value)
    if value < 0:
        raise errors.UserError(f"{name}={value} must not be negative.")


def fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise errors.UserError(f"{name}={value} must lie in [0, 1].")


def seed(name: str, value: int) -> None:
    # A key's seed is a uint32.
    if not 0 <= value < 2**32:
        raise errors.UserError(f"{name}={value} must lie in [0, 2^32).")
