"""The benchmarks, one module each: its `TASKS` are found by being there."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from keel_jax.config import limits
from keel_jax.depth_suite import registry
from keel_jax.tasks import task

# "table4" and "table7" are what the paper averages over (arXiv:2601.19895), each counting once.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "table4": ("arc_easy", "piqa", "hellaswag", "lambada", "winogrande", "sciq"),
    "table7": ("mmlu_pro", "bbh", "gsm8k", "humaneval", "mbpp", "mmlu", "cmmlu", "ceval"),
    # This project's own, generated: docs/depth_suite.md.
    "depth_suite": tuple(f"depth_{name}" for name in registry.TASKS),
}


@functools.cache
def all_tasks() -> Mapping[str, task.Task]:
    """Every benchmark by its name, in the order of domains and names."""
    declared = [
        declaration
        for module in pkgutil.iter_modules(__path__)
        for declaration in importlib.import_module(f"{__name__}.{module.name}").TASKS
    ]
    declared.sort(key=lambda each: (task.DOMAINS.index(each.domain), each.name))
    names = [each.name for each in declared]
    assert len(set(names)) == len(names) and not {*names} & {*GROUPS}, names
    return {each.name: each for each in declared}


def named(names: list[str]) -> list[task.Task]:
    """The tasks of these names, of tasks or of groups, each once, in the order of `all_tasks`.

    Raises:
      UserError: there is no such task; the nearest name is given.
    """
    tasks = all_tasks()
    wanted: set[str] = set()
    for name in names:
        if name == "all":
            wanted |= {*tasks}
        elif name in GROUPS:
            wanted |= {*GROUPS[name]}
        else:
            limits.one_of("--tasks", name, (*tasks, *GROUPS, "all"))
            wanted.add(name)
    return [each for name, each in tasks.items() if name in wanted]
