"""Files whose size is known before their numbers are, written in any order and read by everybody."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tests.checkpoint.test_tensor_files import numbers

from whet.compress.checkpoint.tensor_files import DTYPES, TensorFile
from whet.compress.checkpoint.tensor_writer import INDEX_NAME, Shape, TensorWriter, index_of, shape_of, shards_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TENSORS = {
    "z.first": numbers(torch.float32, (4, 5)), "a.second": numbers(torch.bfloat16, (3,)), "odd": numbers(torch.uint8, (5,)),
    "scalar": numbers(torch.int64, ()), "empty": numbers(torch.float16, (0, 3)), "m.last": numbers(torch.int32, (2, 2)),
}


def written(folder: Path, tensors: dict[str, torch.Tensor], most: int = 1 << 30, *, order: list[str] | None = None) -> list[Path]:
    folder.mkdir(exist_ok=True)
    shards = shards_of([shape_of(name, tensor) for name, tensor in tensors.items()], most)
    with TensorWriter(folder, shards) as writer:
        for name in order or tensors:
            writer.write(name, tensors[name])
        writer.flush()
    if len(shards) > 1:
        (folder / INDEX_NAME).write_bytes(index_of(shards))
    assert [(folder / shard.name).stat().st_size for shard in shards] == [shard.size_bytes for shard in shards]
    return [folder / shard.name for shard in shards]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.contiguous(), other.contiguous())


def test_the_safetensors_package_reads_it(tmp_path: Path) -> None:
    (path,) = written(tmp_path, TENSORS)
    assert path.name == "model.safetensors"
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers asks for it


def test_so_is_it_read_here(tmp_path: Path) -> None:
    found = TensorFile(written(tmp_path, TENSORS)[0])
    assert list(found.entries) == list(TENSORS)
    assert all(same(found.read(name), tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_stored_under_its_name(tmp_path: Path, dtype: str) -> None:
    tensor = numbers(DTYPES[dtype], (3, 2))
    assert shape_of("a", tensor) == Shape("a", dtype, (3, 2))
    found = TensorFile(written(tmp_path, {"a": tensor})[0])
    assert found.entries["a"].dtype == dtype
    assert torch.equal(found.read("a").view(torch.uint8), tensor.view(torch.uint8))


def test_the_numbers_begin_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for length in range(9):
        found = TensorFile(written(tmp_path / str(length), {"n" * (length + 1): torch.ones(2)})[0])
        assert next(iter(found.entries.values())).begin % 8 == 0


def test_what_does_not_lie_row_by_row_is_stored_as_it_is_seen(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    assert torch.equal(load_file(written(tmp_path, {"a": tensor})[0])["a"], tensor)


@given(seed=st.integers(0, 1000), most=st.sampled_from([1, 40, 90, 1 << 30]), twice=st.booleans())
def test_the_order_of_writing_does_not_matter_nor_does_writing_twice(tmp_path_factory: pytest.TempPathFactory, seed: int, most: int,
                                                                      twice: bool) -> None:
    order = list(TENSORS) * (2 if twice else 1)
    random.Random(seed).shuffle(order)
    folder = tmp_path_factory.mktemp("order")
    one = written(folder / "one", TENSORS, most)
    other = written(folder / "other", TENSORS, most, order=order)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_short_writes_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write less than it was asked to."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, place: write(number, bytes(data)[:3] if len(data) < 200 else data, place))
    assert all(same(tensor, TENSORS[name]) for name, tensor in load_file(written(tmp_path, TENSORS)[0]).items())


def test_what_was_written_stays_where_a_run_goes_on(tmp_path: Path) -> None:
    shards = shards_of([shape_of(name, tensor) for name, tensor in TENSORS.items()])
    for some in (["odd", "m.last"], ["scalar", "z.first", "empty", "a.second"]):
        with TensorWriter(tmp_path, shards) as writer:
            for name in some:
                writer.write(name, TENSORS[name])
    assert all(same(tensor, TENSORS[name]) for name, tensor in load_file(tmp_path / "model.safetensors").items())


@pytest.mark.parametrize("most", [1, 79, 80, 86, 91, 1 << 20])
def test_shards_hold_what_they_may_and_the_index_says_what(tmp_path: Path, most: int) -> None:
    paths = written(tmp_path, TENSORS, most)
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in paths]
    assert all(size <= most or len(load_file(path)) == 1 for size, path in zip(sizes, paths, strict=True) if size)
    held = [name for path in paths for name in TensorFile(path).entries]
    assert held == list(TENSORS)  # in the order given
    if len(paths) > 1:
        assert [path.name for path in paths] == [f"model-{at + 1:05d}-of-{len(paths):05d}.safetensors" for at in range(len(paths))]
        index = json.loads((tmp_path / INDEX_NAME).read_text())
        assert index["weight_map"] == {name: path.name for path in paths for name in TensorFile(path).entries}
        assert sum(path.stat().st_size for path in paths) - index["metadata"]["total_size"] == sum(
            int.from_bytes(path.read_bytes()[:8], "little") + 8 for path in paths)
    else:
        assert most >= sum(tensor.nbytes for tensor in TENSORS.values())


def test_transformers_follows_the_index(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, vocab_size=9))
    model.config.save_pretrained(tmp_path)
    assert len(written(tmp_path, dict(model.state_dict()), 800)) > 3
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_another_size_than_planned_is_no_tensor_of_the_file(tmp_path: Path) -> None:
    with TensorWriter(tmp_path, shards_of([Shape("a", "F32", (4,))])) as writer, pytest.raises(ValueError, match="a has 8 bytes, planned"):
        writer.write("a", torch.ones(2))
