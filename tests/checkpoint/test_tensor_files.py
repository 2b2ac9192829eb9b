"""Safetensors files: what others wrote is read in place, and what is broken is said to be, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from whet.compress.checkpoint.tensor_files import DTYPES, LONGEST_HEADER, TensorFile
from whet.core.errors import Refused
from whet.device.memory import _status_bytes

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def numbers(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    raw = torch.randint(0, 2 if dtype == torch.bool else 120, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return raw.to(dtype)


def file_of(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with such a header, JSON or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# -- what is right ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_every_dtype_of_the_package_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"b.weight": numbers(dtype, (3, 5)), "a": numbers(dtype, (7,)), "scalar": numbers(dtype, ()), "empty": numbers(dtype, (0, 4))}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = TensorFile(tmp_path / "x.safetensors")
    assert set(found.entries) == set(tensors)
    for name, tensor in tensors.items():
        got = found.read(name)
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(got.view(torch.uint8) if got.ndim else got.clone().reshape(1).view(torch.uint8),
                           tensor.view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8))


def test_numbers_at_odd_places_are_read(tmp_path: Path) -> None:
    """The format asks for no alignment."""
    wanted = torch.tensor([1.5, -2.25])
    data = b"\x07" + wanted.numpy().tobytes() + torch.tensor([3], dtype=torch.int64).numpy().tobytes()
    header = {"one": entry("U8", [1], [0, 1]), "odd": entry("F32", [2], [1, 9]), "odd too": entry("I64", [1], [9, 17])}
    for blanks in range(4):
        found = TensorFile(file_of(tmp_path, json.dumps(header).encode() + b" " * blanks, data))
        assert torch.equal(found.read("odd"), wanted)
        assert found.read("odd too").tolist() == [3]


def test_metadata_is_no_tensor_and_unknown_names_are_none(tmp_path: Path) -> None:
    found = TensorFile(file_of(tmp_path, {"__metadata__": {"format": "pt"}, "a": entry()}, bytes(8)))
    assert list(found.entries) == ["a"]
    with pytest.raises(KeyError):
        found.read("b")


def test_a_file_without_tensors_is_one(tmp_path: Path) -> None:
    assert not TensorFile(file_of(tmp_path, {})).entries


def test_writing_into_what_was_read_does_not_reach_the_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"a": entry()}, bytes(8))
    before = path.read_bytes()
    TensorFile(path).read("a").add_(1.0)
    assert path.read_bytes() == before


def test_memory_that_is_forgotten_is_given_back_and_read_again(tmp_path: Path) -> None:
    wanted = numbers(torch.uint8, (24_000_000,))
    save_file({"small": torch.ones(3), "large": wanted}, tmp_path / "x.safetensors")
    found = TensorFile(tmp_path / "x.safetensors")
    found.expect("large")
    tensor = found.read("large")
    tensor.sum()
    full = _status_bytes("VmRSS")
    found.forget("large")
    emptied = _status_bytes("VmRSS")
    assert full is not None
    assert emptied is not None
    assert full - emptied > 20_000_000
    assert torch.equal(tensor, wanted)
    assert torch.equal(found.read("small"), torch.ones(3))


# -- what is broken --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(bytes(size))
    with pytest.raises(Refused, match=rf"x\.safetensors.*{size} bytes"):
        TensorFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize("missing", [1, 7, 8])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, missing: int) -> None:
    with pytest.raises(Refused, match="cut short"):
        TensorFile(file_of(tmp_path, {"a": entry()}, bytes(8 - missing)))


@pytest.mark.parametrize(("header", "length", "word"), [
    (b"{", None, "no safetensors header"),
    (b"{ ]", None, "no JSON"),
    (b"\xff\xfe\xfd", None, "no JSON"),
    (b"[1, 2]", None, "no table"),
    (b"{}", 1000, "no safetensors header"),
    (b"{}", LONGEST_HEADER + 1, "no safetensors header"),
    (b"{}", (1 << 64) - 1, "no safetensors header"),
    (b"[" * 100_000, None, "no JSON"),
])
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes, length: int | None, word: str) -> None:
    with pytest.raises(Refused, match=word):
        TensorFile(file_of(tmp_path, header, length=length))


@pytest.mark.parametrize("found", [
    entry("F33"), entry("F32", [3]), entry("F32", [2], [0, 7]), entry("F32", [2], [8, 0]), entry("F32", [2], [-8, 0]), entry("F32", [-2]),
    entry("F32", [-1, -2]), entry("F32", None), entry("F32", ["x"]), entry("F32", [2], [0]), entry("F32", [2], 8), entry("F32", [2], "ab"),
    entry("F32", 2), {"dtype": "F32"}, [], None, 3, entry("F32", [float("inf")]), entry("F32", [2], [0, float("inf")]),
    entry("F32", [2], [float("nan"), 8]), entry("F32", [[2]]),
], ids=str)
def test_an_entry_that_makes_no_sense_is_refused_by_name(tmp_path: Path, found: Any) -> None:
    with pytest.raises(Refused, match=r"read a\.b of x\.safetensors|cut short"):
        TensorFile(file_of(tmp_path, {"a.b": found}, bytes(8)))


def test_a_tensor_behind_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"bytes where its header speaks of"):
        TensorFile(file_of(tmp_path, {"a": entry("F32", [2], [8, 16])}, bytes(8)))


HEADER = json.dumps({"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("I64", [1, 1], [8, 16])}).encode()


@settings(max_examples=200)
@given(at=st.integers(0, len(HEADER) + 7), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_any_broken_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int) -> None:
    """Nothing but Refused is raised, and whatever is given lies inside the file."""
    whole = bytearray(len(HEADER).to_bytes(8, "little") + HEADER + bytes(16))
    whole[at] = byte
    path = tmp_path_factory.getbasetemp() / "broken.safetensors"
    path.write_bytes(whole[: len(whole) - cut])
    try:
        found = TensorFile(path)
    except Refused:
        return
    for name in found.entries:
        found.read(name).clone()
