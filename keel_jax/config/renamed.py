"""Options that have been renamed: users are told, and saved configs are translated."""

import copy
from collections.abc import Mapping, MutableMapping

_OPTIONS = {
    "lanes.peak_lr": "trials.peak_lr",
    "lanes.seed": "trials.seed",
    "mesh.lane": "mesh.trial",
    "mesh.dcn_lane": "mesh.dcn_trial",
    "model.recompute.evaluations": "model.recompute.fixed_point_iterations",
}
# (option, old name of a value) -> its new name.
_VALUES = {("model.recompute.save", "products"): "mlp"}


def option(name: str) -> str | None:
    """The new dotted name of the option `name`; None: it has not changed."""
    return _OPTIONS.get(name)


def value(name: str, old: object) -> object | None:
    """The new name of the value `old` of the option `name`; None: it has not changed."""
    return _VALUES.get((name, old)) if isinstance(old, str) else None


def names_in(values: Mapping) -> dict[str, str]:
    """The old names in nested options, as "name" or "name=value", each with the new one."""
    names = {}
    for old, new in _OPTIONS.items():
        section, key = _section(values, old)
        if section is not None and key in section:
            names[old] = new
    for (name, old), new in _VALUES.items():
        section, key = _section(values, name)
        if section is not None and section.get(key) == old:
            names[f"{name}={old}"] = f"{name}={new}"
    return names


def translate(values: Mapping) -> dict:
    """Nested options as a run saved them, under their current names."""
    values = copy.deepcopy(dict(values))
    for old, new in _OPTIONS.items():
        section, key = _section(values, old)
        if section is None or key not in section:
            continue
        moved = section.pop(key)
        *parents, last = new.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        if isinstance(target, MutableMapping):  # else it is refused as it is
            target[last] = moved
    for section in {name.split(".")[0] for name in _OPTIONS}:
        if values.get(section) == {}:  # a section that no longer exists
            del values[section]
    for (name, old), new in _VALUES.items():
        section, key = _section(values, name)
        if section is not None and section.get(key) == old:
            section[key] = new
    return values


def _section(values: Mapping, name: str) -> tuple[MutableMapping | None, str]:
    """The mapping that holds the option `name`, None if it is absent, and the name's last part."""
    *parents, last = name.split(".")
    section: object = values
    for parent in parents:
        section = section.get(parent) if isinstance(section, Mapping) else None
    return (section if isinstance(section, MutableMapping) else None), last
