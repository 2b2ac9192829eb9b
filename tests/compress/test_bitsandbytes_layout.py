"""Weights on a code book in a checkpoint: their size is known before, they come back as they went, and transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from whet.compress.checkpoint import Checkpoint, bitsandbytes_layout, open_checkpoint, stored
from whet.compress.checkpoint.stored import Layout
from whet.compress.checkpoint.tensor_writer import Shape, TensorWriter, shape_of, shards_of
from whet.compress.codebook import Coded, RoundedScales, coded
from whet.core.errors import Unsupported

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Array = np.ndarray[Any, Any]
SIZES = [(4, 64), (3, 50), (3, 51), (172, 64), (1, 1), (300, 256)]


def weight_of(size: tuple[int, int], book: str = "nf4", double: bool = True, scale: float = 0.02) -> Coded:
    weight = np.random.default_rng(0).standard_normal(size).astype(np.float32) * np.float32(scale)
    return coded(weight, book, block=64, double=double)


def reader(tensors: dict[str, Tensor]) -> Callable[[str], Tensor]:
    return lambda name: tensors[name]


# -- tensors -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("book", ["nf4", "fp4"])
@pytest.mark.parametrize("size", SIZES)
def test_what_was_planned_is_what_is_stored_and_it_comes_back(size: tuple[int, int], book: str, double: bool) -> None:
    weight = weight_of(size, book, double)
    layout = stored.layout_of(weight)
    assert layout == Layout(book, 4, 64, double=double)
    found = stored.tensors("a.b", weight)
    assert stored.shapes("a.b", size, layout) == [shape_of(name, tensor) for name, tensor in found.items()]
    again = stored.unpacked("a.b", layout, reader(found))
    assert isinstance(again, Coded)
    assert (again.book, again.block, again.double) == (book, 64, double)
    assert np.array_equal(again.codes, weight.codes)
    assert again.values.tobytes() == weight.values.tobytes()
    assert stored.size_of("a.b", layout, reader(found)) == size


def test_names_and_types_are_those_of_bitsandbytes() -> None:
    """bitsandbytes 0.50.2: QuantState.as_dict(packed=True) of quantize_4bit with and without compress_statistics."""
    state = "weight.quant_state.bitsandbytes__nf4"
    shapes = bitsandbytes_layout.shapes("x", (3, 50), kind="nf4", block=64, double=True)
    found = {shape.name: (shape.dtype, shape.shape) for shape in shapes}
    assert {name: value for name, value in found.items() if name != f"x.{state}"} == {
        "x.weight": ("U8", (75, 1)), "x.weight.absmax": ("U8", (3,)), "x.weight.quant_map": ("F32", (16,)),
        "x.weight.nested_absmax": ("F32", (1,)), "x.weight.nested_quant_map": ("F32", (256,))}
    plain = bitsandbytes_layout.tensors("x", weight_of((3, 50), double=False))
    assert list(plain) == ["x.weight", "x.weight.absmax", "x.weight.quant_map", f"x.{state}"]
    assert plain["x.weight.absmax"].dtype == torch.float32
    assert json.loads(bytes(plain[f"x.{state}"].tolist())) == {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [3, 50]}
    double = bitsandbytes_layout.tensors("x", weight_of((3, 50)))
    words = json.loads(bytes(double[f"x.{state}"].tolist()))
    assert (words["nested_blocksize"], words["nested_dtype"]) == (256, "float32")


def test_the_first_code_lies_in_the_upper_bits_and_what_is_left_is_zero() -> None:
    codes = np.array([[1, 2, 15, 0, 9]], np.uint8)
    for book, zero in (("nf4", 7), ("fp4", 0)):
        weight = Coded(codes, book, 64, np.ones(1, np.float32))
        assert bitsandbytes_layout.tensors("x", weight)["x.weight"].tolist() == [[0x12], [0xF0], [0x90 + zero]]


@pytest.mark.parametrize("offset", [float(np.float32(number)) for number in (0.5, 1.0, 1e-38, 1.1754943508222875e-38, 3.4e38)])
def test_the_size_does_not_depend_on_the_numbers(offset: float) -> None:
    scales = RoundedScales(np.zeros(1, np.uint8), np.ones(1, np.float32), offset)
    found = bitsandbytes_layout.tensors("x", Coded(np.zeros((1, 64), np.uint8), "nf4", 64, scales))
    wanted = bitsandbytes_layout.shapes("x", (1, 64), kind="nf4", block=64, double=True)
    assert [shape_of(name, tensor) for name, tensor in found.items()] == wanted
    again = bitsandbytes_layout.unpacked("x", "nf4", reader(found))
    assert isinstance(again.scales, RoundedScales)
    assert again.scales.offset == offset


# -- a whole checkpoint ----------------------------------------------------------------------------------------------------------------


def written(source: Checkpoint, folder: Path, book: str, double: bool) -> Checkpoint:
    """The checkpoint with every linear layer of its blocks coded."""
    names = [name for index in range(source.block_count) for name in source.block_layers(index)]
    layouts: dict[str, Layout] = {}
    tensors: dict[str, Tensor] = {}
    planned: list[Shape] = []
    for name in names:
        made = coded(source.weight(name).numpy(), book, block=64, double=double)
        layouts[name] = stored.layout_of(made)
        planned += stored.shapes(name, source.size(name), layouts[name])
        tensors |= stored.tensors(name, made)
    plain = {name: source.tensor(name) for name in source.entries if name.removesuffix(".weight") not in names}
    planned += [shape_of(name, tensor) for name, tensor in plain.items()]
    with TensorWriter(folder, shards_of(planned)) as writer:
        for name, tensor in {**tensors, **plain}.items():
            writer.write(name, tensor)
    config = {**source.config, "quantization_config": stored.described(layouts, (source.family.head,))}
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def llama(folder: Path) -> Path:
    """A small model of random weights, all of whose layers bitsandbytes' kernels can run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=100, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("double", [False, True])
def test_a_checkpoint_that_holds_coded_layers_gives_them_back(assets: Path, tmp_path: Path, double: bool) -> None:
    source = open_checkpoint(assets / "stories260K")
    made = written(source, tmp_path, "nf4", double)
    for name in ("model.layers.0.mlp.down_proj", "model.layers.4.self_attn.k_proj"):
        assert made.size(name) == source.size(name) == tuple(made.weight(name).shape)
        found = made.rounded(name)
        assert isinstance(found, Coded)
        assert (found.book, found.double) == ("nf4", double)
        wanted = coded(source.weight(name).numpy(), "nf4", block=64, double=double).values
        assert np.array_equal(made.weight(name).numpy(), wanted)
        assert len(made.names_under(name)) == (6 if double else 4)
    assert made.layouts["model.layers.0.mlp.down_proj"] == Layout("nf4", 4, 64, double=double)
    assert made.tied == source.tied


@pytest.mark.parametrize(("book", "double"), [("nf4", True), ("nf4", False), ("fp4", True)])
def test_transformers_and_bitsandbytes_compute_what_was_simulated(tmp_path: Path, book: str, double: bool) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    source = llama(tmp_path / "source")
    (tmp_path / "coded").mkdir()
    made = written(open_checkpoint(source), tmp_path / "coded", book, double)
    wanted = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name in made.layouts:
        wanted.get_submodule(name).weight.data = made.weight(name)
    # In training its kernels compute in float32; otherwise, on a CPU that has it, in bfloat16.
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "coded", dtype=torch.float32, device_map="cpu").train()
    assert type(found.get_submodule("model.layers.1.mlp.up_proj")).__name__ == "Linear4bit"
    assert type(found.get_submodule("lm_head")).__name__ == "Linear"
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(found(tokens).logits, wanted.train()(tokens).logits, rtol=0, atol=1e-6)


# -- words ---------------------------------------------------------------------------------------------------------------------------------


def test_the_words_in_config_json_tell_the_layouts_again() -> None:
    layouts = {"a": Layout("nf4", 4, 64, double=True), "b": Layout("fp4", 4, 128)}
    words = stored.described(layouts, ("head",))
    assert (words["quant_method"], words["load_in_4bit"], words["llm_int8_skip_modules"]) == ("bitsandbytes", True, ["head"])
    assert stored.layouts_in(json.loads(json.dumps(words))) == layouts


def test_integers_and_code_books_do_not_go_into_one_checkpoint() -> None:
    with pytest.raises(Unsupported, match="layers of integers and layers of nf4"):
        stored.described({"a": Layout("nf4", 4, 64), "b": Layout("int", 4, 64)}, ())
