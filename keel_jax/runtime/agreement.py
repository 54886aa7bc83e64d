"""Checks that the processes of one program were started alike, before they compute together.

Two processes with different learning rates would train as one model, and two with different widths
would fail in their first collective, at every restart. So the processes compare what they were
started with through the key-value store of `jax.distributed`, for which nothing is compiled.
"""

import collections
import collections.abc
import itertools
import json
import os
from typing import Any

import jax

from keel_jax import config, errors
from keel_jax.config import mapping
from keel_jax.runtime import versions

# Options of one machine: they decide neither the program nor the data.
_OF_ONE_MACHINE = ("data.path", "data.num_threads", "data.prefetch_batches",
                   "data.verify_checksums", "runtime.")  # fmt: skip
# Values of JAX's own configuration that change what a program computes.
_JAX_OPTIONS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)
# Compilers' flags, without those about one machine: its dumps, and its number of devices.
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_FLAGS_OF_ONE_MACHINE = ("--xla_dump", "--xla_force_host_platform_device_count")
# The watchdog ends a process that waits too long for the others, and a process that dies ends all.
_WAIT_MILLISECONDS = 24 * 3600 * 1000
# Differences that a message lists.
_NUM_LISTED = 5

# Keys and barriers of the store are used once.
_numbers = itertools.count()


def check_options(cfg: config.Config) -> None:
    """Checks that all processes have the same options and run the same software; a collective.

    Options that belong to one machine, such as `data.path` and `runtime.*`, may differ.

    Raises:
      UserError: on every process, with the value of each.
    """
    if jax.process_count() == 1:
        return
    options = {
        name: value
        for name, value in mapping.flat(config.to_dict(cfg)).items()
        if not name.startswith(_OF_ONE_MACHINE)
    }
    check(options, "with different options", "Start all of them with the same command")
    software: dict[str, Any] = {
        f"version of {name}": value for name, value in versions.packages().items()
    }
    software |= {name: getattr(jax.config, name) for name in _JAX_OPTIONS}
    software |= {name: _flags(os.environ.get(name, "")) for name in _FLAGS}
    software["commit of the source"] = versions.commit()
    check(software, "with different software", "Install and set the same on every machine")


def check(values: collections.abc.Mapping[str, Any], how: str, remedy: str) -> None:
    """Checks that `values`, which can be written as JSON, are the same on all processes.

    A collective: every process calls it equally often, in the same order.

    Args:
      values: by name; a name that a process lacks counts as null.
      how: says for the message how the processes differ, as in "with different options".
      remedy: the message's last sentence, without a full stop.

    Raises:
      UserError: on every process, with the names that differ and the value of each process.
    """
    if jax.process_count() == 1:
        return
    store, place = versions.coordination_client(), f"keel_jax/agreement/{next(_numbers)}"
    mine = json.loads(json.dumps(dict(values)))
    if jax.process_index() == 0:
        store.key_value_set(f"{place}/lead", json.dumps(mine))
    leads = json.loads(store.blocking_key_value_get(f"{place}/lead", _WAIT_MILLISECONDS))
    names = [*leads, *(name for name in mine if name not in leads)]
    differing = {name: mine.get(name) for name in names if mine.get(name) != leads.get(name)}
    # Only the differences travel, so that many processes do not read the values of as many others.
    if differing:
        content = json.dumps(differing)
        store.key_value_set(f"{place}/others/{jax.process_index()}", content)
    store.wait_at_barrier(f"{place}/written", _WAIT_MILLISECONDS)
    others = {
        int(key.rsplit("/", 1)[1]): json.loads(value)
        for key, value in store.key_value_dir_get(f"{place}/others")
    }
    # Nobody leaves before all know why.
    store.wait_at_barrier(f"{place}/read", _WAIT_MILLISECONDS)
    if others:
        raise errors.UserError(_message(leads, others, how, remedy))


def _message(leads: dict, others: dict[int, dict], how: str, remedy: str) -> str:
    """Names every process's value of the first names that differ."""
    names = list(dict.fromkeys(name for _, other in sorted(others.items()) for name in other))
    lines = []
    for name in names[:_NUM_LISTED]:
        processes = collections.defaultdict(list)
        for process in range(jax.process_count()):
            value = others.get(process, {}).get(name, leads.get(name))
            processes[json.dumps(value)].append(process)
        values = (f"{value} on {_numbered(numbers)}" for value, numbers in processes.items())
        lines.append(f"{name} is {', '.join(values)}")
    if len(names) > _NUM_LISTED:
        lines.append(f"and {len(names) - _NUM_LISTED} more")
    return f"The processes were started {how}: {'; '.join(lines)}. {remedy}."


def _numbered(numbers: list[int]) -> str:
    if len(numbers) > 4:
        return f"{len(numbers)} processes from {numbers[0]} on"
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _flags(text: str) -> str:
    flags = [flag for flag in text.split() if not flag.startswith(_FLAGS_OF_ONE_MACHINE)]
    return " ".join(sorted(flags))
