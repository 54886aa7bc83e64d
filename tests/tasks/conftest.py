"""The run that the tests of `inference` load."""

from tests.inference.conftest import model, workdir

__all__ = ["model", "workdir"]
