"""Safetensors files as the package of that name reads and writes them; damage is named."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from keel_jax.interchange import safetensors_file

_RNG = np.random.default_rng(0)
_VALUES = {
    "a.weight": _RNG.normal(size=(3, 5)).astype(np.float32),
    "b": _RNG.normal(size=7).astype(np.float32),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def _write(path, values):
    tensors = [
        safetensors_file.Tensor(name, value.shape, value.dtype) for name, value in values.items()
    ]
    with path.open("wb") as file:
        safetensors_file.write(file, tensors, iter(values.values()))


def test_the_package_reads_what_is_written(tmp_path):
    _write(tmp_path / "ours", _VALUES)
    read = safetensors.numpy.load_file(tmp_path / "ours")
    assert read.keys() == _VALUES.keys()
    for name, value in _VALUES.items():
        np.testing.assert_array_equal(read[name], value)
    with safetensors.safe_open(tmp_path / "ours", "np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers asks for it


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_written_is_read(tmp_path, dtype):
    values = {name: value.astype(dtype) for name, value in _VALUES.items()}
    _write(tmp_path / "ours", values)
    reader = safetensors_file.Reader(tmp_path / "ours")
    assert set(reader.names()) == set(values)
    for name, value in values.items():
        assert reader.shape(name) == value.shape and reader.dtype(name) == value.dtype
        np.testing.assert_array_equal(reader.read(name), value)


def test_what_the_package_writes_is_read(tmp_path):
    safetensors.numpy.save_file(_VALUES, tmp_path / "theirs", metadata={"format": "pt"})
    reader = safetensors_file.Reader(tmp_path / "theirs")
    for name, value in _VALUES.items():
        np.testing.assert_array_equal(reader.read(name), value)


def _with_header(header) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "it is empty"),
        (b"abc", "longer than its 3 bytes"),
        ((10**12).to_bytes(8, "little") + b"{}", "longer than its 10 bytes"),
        (_with_header(b"{not"), "not JSON"),
        (_with_header([]), "not an object"),
        (_with_header({"a": {"dtype": "F32"}}), "entry a is not that of a tensor"),
        (_with_header({"a": {**_ENTRY, "shape": [-2]}}), "entry a is not that of a tensor"),
        (_with_header({"a": {**_ENTRY, "shape": [3]}}) + bytes(8), "a has other bytes"),
        (_with_header({"a": _ENTRY}) + bytes(7), "bytes, and its header says"),
        (_with_header({"a": _ENTRY}) + bytes(9), "bytes, and its header says"),
        (_with_header({"a": {**_ENTRY, "dtype": "I8"}}) + bytes(8), "a is of dtype I8"),
    ],
)
def test_damage_is_named(tmp_path, content, told):
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged.*{told}"):
        safetensors_file.Reader(tmp_path / "damaged")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no .*absent"):
        safetensors_file.Reader(tmp_path / "absent")
