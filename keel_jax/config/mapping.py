"""Converts mappings to trees of frozen dataclasses and back, for any fields; see `config`."""

import dataclasses
import difflib
import types
import typing

from ml_collections import config_dict

from keel_jax import errors


def defaults(cls: typing.Any) -> dict:
    """The defaults of a tree of dataclasses as nested dictionaries; None as a typed placeholder.

    These are the declared defaults, before an instance's checks derive values from them.
    """
    raw = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            raw[field.name] = defaults(kind)
        elif _optional(kind):
            raw[field.name] = config_dict.placeholder(_optional(kind))
        else:
            raw[field.name] = field.default
    return raw


def build(cls: typing.Any, values: typing.Mapping, prefix: str = "") -> typing.Any:
    """The dataclass `cls` of `values`, which may lack keys.

    Raises:
      UserError: an unknown key (the nearest valid one is named), or a value or a section of the
        wrong type.
    """
    if not isinstance(values, typing.Mapping):
        raise errors.UserError(f"{prefix[:-1]}={values!r}: expected a section of options.")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise errors.UserError(
                f"Unknown config key {prefix}{key}. Did you mean {prefix}{near}?"
            )
    built = {}
    for key, value in values.items():
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            built[key] = build(kind, value, f"{prefix}{key}.")
        else:
            built[key] = _coerce(value, kind, prefix + key)
    return cls(**built)


def flat(tree: typing.Mapping, prefix: str = "") -> dict:
    """Flattens nested dictionaries into one with dotted names."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def _coerce(value, kind, name: str):
    """`value` as `kind`; integers pass as floats, lists as tuples, nothing else changes type."""
    if (inner := _optional(kind)) is not None:
        return None if value is None else _coerce(value, inner, name)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise errors.UserError(f"{name}={value!r}: expected a tuple, as in (1, 2).")
        return tuple(_coerce(item, typing.get_args(kind)[0], name) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise errors.UserError(f"{name}={value!r}: expected {kind.__name__}.")
    return value


def _optional(kind):
    """The T of `T | None`, else None."""
    if isinstance(kind, types.UnionType):
        return next(arg for arg in typing.get_args(kind) if arg is not type(None))
    return None
