"""Reading and writing of files compared with the safetensors library, and errors for invalid files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdft_jax.errors import SdftError
from sdft_jax.models.hf.safetensors_io import read_header, write_file


def some_tensors():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "c": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }


def layout(tensors):
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def test_files_of_the_library_are_read(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(header[name].map(), tensor)
        assert header[name].dtype == tensor.dtype


def test_the_library_reads_written_files(tmp_path):
    tensors = some_tensors()
    write_file(tmp_path / "x.safetensors", layout(tensors), iter(tensors.values()))
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_a_transposed_array_is_written_in_row_major_order(tmp_path):
    tensor = np.arange(6.0).reshape(2, 3).T
    write_file(tmp_path / "x.safetensors", layout({"a": tensor}), [tensor])
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["a"], tensor)


def with_header(header, data=b""):
    """Return the bytes of a file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no valid safetensors header"),
        (b"abc", "no valid safetensors header"),
        (struct.pack("<Q", 10**9) + b"{}", "the header has 1,000,000,000 bytes"),
        (struct.pack("<Q", 4) + b"{{{{", "no valid safetensors header"),
        (with_header([1]), "no valid safetensors header"),
        (with_header({"a": {"shape": [1]}}), "no valid safetensors header"),
        (
            with_header({"a": {"dtype": "X7", "shape": [1], "data_offsets": [0, 1]}}),
            "a has the unknown dtype 'X7'",
        ),
        (with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "does not fit 4 bytes"),
        (with_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}), "natural numbers"),
        (with_header({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}), "natural numbers"),
        (
            with_header(
                {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}, b"1234"
            ),
            "b begins at byte",
        ),
        (
            with_header({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, b"12345678"),
            "a begins at byte",
        ),
        (struct.pack("<Q", 5000) + b"[" * 5000, "no valid safetensors header"),
        (
            with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
            "truncated or corrupt",
        ),
        (
            with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"),
            "truncated or corrupt",
        ),
    ],
)
def test_the_error_of_an_invalid_file(tmp_path, content, message):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(SdftError, match=rf"x\.safetensors.*{message}"):
        read_header(file)


def test_the_error_of_a_missing_file(tmp_path):
    with pytest.raises(SdftError, match=r"x\.safetensors is missing"):
        read_header(tmp_path / "x.safetensors")
