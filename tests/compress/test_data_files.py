"""Data from files: .npz, .npy, CSV, Parquet. Damaged and hostile ones too."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from whet.compress.data import load_data
from whet.compress.data.npz import read_npz
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused

ROW = [TensorSpec("serving_default_input_1:0", "float32", ("N", 2))]
NAME = ROW[0].name


def rows(n: int) -> np.ndarray:
    return np.arange(2 * n, dtype=np.float32).reshape(n, 2)


def saved(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_npz_by_name_with_labels(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d.npz", **{NAME: np.asfortranarray(rows(5)), "labels": np.arange(5)})  # type: ignore[arg-type]
        data = load_data(str(tmp_path / "d.npz"), ROW)
        assert np.array_equal(next(data.batches(5))[NAME], rows(5))
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2, 3, 4]
        assert data.source == str(tmp_path / "d.npz")


def test_one_unnamed_array_is_the_one_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", rows(3))
    np.savez(tmp_path / "l.npz", rows(3), labels=np.arange(3))
    np.save(tmp_path / "d.npy", rows(3))
    datas = [load_data(tmp_path / name, ROW) for name in ("d.npz", "l.npz", "d.npy")]
    assert len({data.sample_hashes for data in datas}) == 1
    assert datas[1].labels is not None


def test_wrong_names_are_both_listed(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"inputs \('serving_default_input_1:0'\) .*: the arrays 'input', 'extra'.*numpy.savez"):
        load_data(saved(tmp_path / "d.npz", input=rows(2), extra=rows(2)), ROW)


@pytest.mark.parametrize(("name", "message"), [
    ("gone.npz", "no such file or folder"), ("data.txt", r"kind .txt.*give .npz"), ("data", "kind unknown"),
])
def test_a_missing_or_unknown_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    if "gone" not in name:
        (tmp_path / name).write_text("x")
    with pytest.raises(Refused, match=message):
        load_data(tmp_path / name, ROW)


@pytest.mark.parametrize("kind", ["npz", "npy", "csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", b"\x93NUMPY\x01\x00", bytes(range(256)) * 4])
def test_garbage_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"d.{kind}"
    path.write_bytes(content)
    with pytest.raises(Refused):
        load_data(path, ROW)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_a_file_cut_off_at_any_byte_is_refused(tmp_path: Path, save: object) -> None:
    path = tmp_path / ("d.npy" if save is np.save else "d.npz")
    if save is np.save:
        np.save(path, rows(3))
    else:
        save(path, **{NAME: rows(3), "labels": np.arange(3)})  # type: ignore[operator]
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Refused):
            read_npz(path)
    path.write_bytes(whole)
    read_npz(path)


def test_a_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", **{NAME: rows(3)})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            found = read_npz(path)
        except Refused:
            continue
        assert all(np.array_equal(array, rows(3)) for array in found.values())  # only a name or a date can have changed


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path / "d.npz", **{NAME: np.array([{"a": 1}, None], dtype=object)})
    with pytest.raises(Refused, match="Python objects"):
        load_data(path, ROW)


def npy(shape: tuple[int, ...], data: bytes, descr: str = "<f4") -> bytes:
    header = str({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("shape", [(2**40, 2), (2**62, 2**62), (10**30,), (-1, 2), (5, 2)])
def test_a_header_that_lies_about_the_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = zipped(tmp_path / "d.npz", {f"{NAME}.npy": npy(shape, rows(3).tobytes())})
    with pytest.raises(Refused, match=r"declares .* bytes|ends after"):
        read_npz(path)
    path = tmp_path / "d.npy"
    path.write_bytes(npy(shape, rows(3).tobytes()))
    with pytest.raises(Refused):
        read_npz(path)


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.npz", {f"{NAME}.npy": npy((10**6, 2), bytes(8 * 10**6))})
    assert path.stat().st_size < 20_000
    with pytest.raises(Refused, match=r"within .* GiB: 1 arrays, 8000\d+ bytes"):
        load_data(path, ROW, max_bytes=10**6)
    assert len(load_data(path, ROW, max_bytes=10**7)) == 10**6


def test_a_bomb_that_declares_a_small_size_gives_no_more_than_that(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.npz", {"x.npy": npy((10**6, 2), bytes(8 * 10**6))})
    content = path.read_bytes()
    true_size = struct.pack("<I", len(npy((10**6, 2), bytes(8 * 10**6))))
    assert content.count(true_size) >= 1
    path.write_bytes(content.replace(true_size, struct.pack("<I", 500)))
    with pytest.raises(Refused, match=r"declares 8000000 bytes where the file has 500|CRC"):
        read_npz(path, max_bytes=1000)


def test_bytes_after_the_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="more bytes than 'x' declares"):
        read_npz(zipped(tmp_path / "d.npz", {"x.npy": npy((3, 2), rows(3).tobytes() + b"more")}))


def test_many_members_and_foreign_files_in_the_zip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="1001 arrays"):
        read_npz(zipped(tmp_path / "m.npz", {f"{i}.npy": b"" for i in range(1001)}))
    with pytest.raises(Refused, match=r"no valid \.npz"):
        read_npz(zipped(tmp_path / "r.npz", {"readme.txt": b"hello"}))


@pytest.mark.parametrize("descr", ["|O", "<U3", "<M8[s]", "<c8", "|V4", "<f99"])
def test_odd_dtypes_are_refused(tmp_path: Path, descr: str) -> None:
    path = zipped(tmp_path / "d.npz", {f"{NAME}.npy": npy((1, 2), bytes(64), descr)})
    with pytest.raises(Refused):
        load_data(path, ROW)


CSV = [TensorSpec("x", "float32", ("N", 3))]


def table(tmp_path: Path, text: str, kind: str = "csv") -> Path:
    path = tmp_path / f"d.{kind}"
    if kind == "csv":
        path.write_text(text)
    else:
        from pyarrow import csv, parquet

        parquet.write_table(csv.read_csv(io.BytesIO(text.encode())), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("label", ["label", "labels"])
def test_columns_in_their_order_are_the_features(tmp_path: Path, kind: str, label: str) -> None:
    data = load_data(table(tmp_path, f"c,{label},a,b\n1.5,1,2,3\n4,0,5,6\n", kind), CSV)
    assert next(data.batches(9))["x"].tolist() == [[1.5, 2, 3], [4, 5, 6]]
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0]
    assert data.labels.dtype == np.int64


def test_columns_called_like_the_inputs_are_the_inputs(tmp_path: Path) -> None:
    specs = [TensorSpec("age", "float32", ("N", 1)), TensorSpec("count", "int64", ("N",))]
    batch = next(load_data(table(tmp_path, "count,age\n1,2.5\n3,4.5\n"), specs).batches(2))
    assert batch["age"].tolist() == [[2.5], [4.5]]
    assert batch["count"].tolist() == [1, 3]


def test_columns_fill_the_one_long_axis(tmp_path: Path) -> None:
    spec = [TensorSpec("x", "float32", ("N", 1, 3, 1))]
    assert next(load_data(table(tmp_path, "a,b,c\n1,2,3\n"), spec).batches(1))["x"].tolist() == [[[[1], [2], [3]]]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("text", "message"), [
    ("a,b,c\n1,2,3\n4,,6\n", r"'b' .*no value in row 1"),
    ("a,b,c\n1,2,red\n", r"'c' .*type string"),
    ("a,b,c,label\n1,2,3,cat\n", r"'label' .*number of the class"),
    ("1.5,2,3\n4,5,6\n", "first line holds numbers"),
    ("label\n1\n", "empty: 1 rows, 0 columns"),
    ("a,b\n1,2\n", r"samples of shape \[3\]"),
    ("a,b,c\n1,2,nan\n", r"'c' .*no value in row 0"),
    ("a,b,c\n1,2,inf\n", "inf in sample 0"),
])
def test_bad_tables_are_refused(tmp_path: Path, kind: str, text: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        load_data(table(tmp_path, text, kind), CSV)


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="empty: 0 rows"):
        load_data(table(tmp_path, "a,b,c\n"), CSV)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="same name"):
        load_data(table(tmp_path, "a,a,c\n1,2,3\n"), CSV)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_large_table_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    path = table(tmp_path, "a,b,c\n" + "1,2,3\n" * 500, kind)
    with pytest.raises(Refused, match="within"):
        load_data(path, CSV, max_bytes=1000)


def test_a_parquet_file_cut_off_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "a,b,c\n1,2,3\n", "parquet")
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(Refused):
            load_data(path, CSV)


@pytest.mark.parametrize(("folder", "count"), [("resnet20_cifar10", 2000), ("kws_mlperf_tiny", 900), ("cwru_bearing", 771)])
def test_the_sample_data_loads(assets: Path, folder: str, count: int) -> None:
    with np.load(assets / folder / "eval.npz") as arrays:
        name = next(key for key in arrays if key != "labels")
        shape = arrays[name].shape
    data = load_data(assets / folder / "eval.npz", [TensorSpec(name, "float32", ("N", *shape[1:]))])
    assert len(data) == count
    assert data.labels is not None
    assert data.labels.dtype == np.int64
