"""The workers get this environment's versions."""

import importlib.metadata

from launch import constraints


def test_the_constraints_are_this_environment(tmp_path):
    versions = dict(line.split("==") for line in constraints.constraint_lines())
    assert versions["jax"] == importlib.metadata.version("jax")
    assert "keel-jax" not in versions and "keel_jax" not in versions
    assert not [version for version in versions.values() if "+" in version]
