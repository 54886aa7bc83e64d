"""Checks the package's annotations, shapes included, while tests run (tests/conftest.py)."""

import beartype

# An int passes for a float, as everywhere in Python.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
# Modules whose annotations are executed; the others' are read by pyright alone.
MODULES = ("keel_jax.model", "keel_jax.training.loss", "keel_jax.data.loader")
