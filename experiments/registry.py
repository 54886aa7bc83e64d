"""The experiments that `python -m experiments.run NAME` runs: a package and a line here each."""

import difflib
import importlib

from experiments.sweeps import experiment
from keel_jax import errors

# Package under experiments/: the module that holds its `EXPERIMENT`, an `experiment.Experiment`.
MODULES = {
    "lr_robustness": "experiments.lr_robustness.analysis",
    "depth_scaling": "experiments.depth_scaling.analysis",
    "alpha": "experiments.alpha.analysis",
    "data_regime": "experiments.data_regime.analysis",
    "branch_weight": "experiments.branch_weight.analysis",
    "vanishing": "experiments.vanishing.analysis",
    "gradient_flow": "experiments.gradient_flow.experiment",
    "layer_redundancy": "experiments.layer_redundancy.experiment",
}


def load(name: str) -> experiment.Experiment:
    """The experiment of that name.

    Raises:
      UserError: there is none; the nearest is named.
    """
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1, cutoff=0.0)[0]
        raise errors.UserError(
            f"No experiment {name!r}. Did you mean {near}? All: {', '.join(MODULES)}."
        )
    return importlib.import_module(MODULES[name]).EXPERIMENT


def summary(name: str) -> str:
    """What the experiment is about: the first line of its package's docstring."""
    doc = importlib.import_module(f"experiments.{name}").__doc__
    assert doc, f"experiments/{name}/__init__.py has no docstring"
    return doc.splitlines()[0]
