"""The versions of this environment, for pip on the workers: `python -m launch.constraints FILE`.

One line `name==version` a package. Packages that an index does not have in this version (the
project itself, local builds such as 1.0+cuda) are left out.
"""

import importlib.metadata
import pathlib
import sys


def constraint_lines() -> list[str]:
    """The constraints, sorted, each package once."""
    constraints: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        # direct_url.json: installed from a directory, an archive or a repository.
        from_index = distribution.read_text("direct_url.json") is None
        key = (name or "").lower().replace("_", "-")
        # A checkout's own egg-info is listed too, without a file that says where it comes from.
        if key not in ("", "keel-jax") and from_index and "+" not in version:
            constraints.setdefault(key, f"{name}=={version}")
    return [constraints[name] for name in sorted(constraints)]


if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text("\n".join(constraint_lines()) + "\n")
