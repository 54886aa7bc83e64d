"""The weights of a folder for transformers: which file holds which tensor."""

import pathlib
from typing import Any

import numpy as np

from keel_jax import errors
from keel_jax.interchange import safetensors_file
from keel_jax.runtime import files

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights:
    """The tensors of a folder, which stay on disk until they are used."""

    def __init__(self, folder: pathlib.Path, readers: dict[str, safetensors_file.Reader]):
        self.folder = folder
        self._readers = readers

    def names(self) -> set[str]:
        return set(self._readers)

    def dtypes(self) -> set[np.dtype]:
        return {reader.dtype(name) for name, reader in self._readers.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._readers[name].shape(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor, a view of its file."""
        return self._readers[name].read(name)

    def path(self, name: str) -> pathlib.Path:
        """The file that holds the tensor."""
        return self._readers[name].path


def open_weights(folder: pathlib.Path) -> Weights:
    """The weights of a folder: of model.safetensors, or of the files in its index.

    Raises:
      UserError: they are missing, damaged, or in another format; the file is named.
    """
    index = files.read_json(folder / _INDEX, remedy="get it again")
    if index is None and not (folder / _ONE).exists():
        raise errors.UserError(
            f"{folder} has neither {_ONE} nor {_INDEX}: weights are read from safetensors alone. "
            "transformers writes them with save_pretrained."
        )
    if index is None:
        only = safetensors_file.Reader(folder / _ONE)
        return Weights(folder, dict.fromkeys(only.names(), only))
    weight_map = _weight_map(index, folder / _INDEX)
    of_file = {
        name: safetensors_file.Reader(folder / name) for name in sorted(set(weight_map.values()))
    }
    held = {name: set(reader.names()) for name, reader in of_file.items()}
    for tensor, name in weight_map.items():
        if tensor not in held[name]:
            raise errors.UserError(
                f"{folder / name} lacks {tensor}, which {_INDEX} says it holds: get both again."
            )
    return Weights(folder, {tensor: of_file[name] for tensor, name in weight_map.items()})


def _weight_map(index: Any, path: pathlib.Path) -> dict[str, str]:
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(
            isinstance(name, str) and name == pathlib.Path(name).name
            for name in weight_map.values()
        )
    ):
        raise errors.UserError(f"{path} has no weight_map of tensors to files beside it.")
    return weight_map
