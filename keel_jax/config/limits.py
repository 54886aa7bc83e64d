"""Limits of single options; see `config`."""

import difflib
import typing

from keel_jax import errors


def one_of(name: str, value: str, allowed: typing.Sequence[str]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)[0]
        raise errors.UserError(
            f"{name}={value!r} is not known. Did you mean {near!r}? All: {', '.join(allowed)}."
        )


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise errors.UserError(f"{name}={value} must be at least {least}.")


def positive(name: str, value: float) -> None:
    if not value > 0:
        raise errors.UserError(f"{name}={value} must be positive.")


def not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise errors.UserError(f"{name}={value} must not be negative.")


def fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise errors.UserError(f"{name}={value} must lie in [0, 1].")


def seed(name: str, value: int) -> None:
    # A key's seed is a uint32.
    if not 0 <= value < 2**32:
        raise errors.UserError(f"{name}={value} must lie in [0, 2^32).")
