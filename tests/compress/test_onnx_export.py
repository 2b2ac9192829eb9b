"""Language models as ONNX: the graph computes what transformers computes, from exactly our codes, with and without its cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.rounded_checkpoints import plain_rounding, random_checkpoint, rounded_checkpoint, torch_model
from tests.slow_papers import nbits

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.apply import apply_to_checkpoint
from whet.compress.checkpoint.onnx_export import OnnxReport, export_onnx
from whet.compress.checkpoint.onnx_export.drawing import Drawing
from whet.compress.checkpoint.onnx_export.packing import joined, kernel_block, packed
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.codebook import coded
from whet.compress.grid import Quantised, quantise, weight_grid
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

Array = Any
TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 96, 40)]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama, frequencies of version 3": {"rope_parameters": LLAMA3, "hidden_size": 48, "head_dim": 32},
    "llama, frequencies divided": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama, heads that its kernel does not rotate": {"head_dim": 8},
    "mistral": {"sliding_window": 9},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"hidden_size": 48, "tie_word_embeddings": True},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 10, "final_logit_softcapping": 1.5, "attn_logit_softcapping": 1.0},
    "gemma3_text": {"sliding_window": 8, "layer_types": SLIDING},
    "phi3": {},
    "phi": {"num_key_value_heads": 4},
    "gpt2": {},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stories(assets: Path) -> Path:
    folder = assets / "stories260K"
    if not folder.is_dir():
        pytest.skip("no stories260K")
    return folder


def logits(folder: Path, chunks: Sequence[Sequence[int]]) -> Array:
    """[tokens, vocabulary], the chunks fed one after the other, each with the cache that the one before gave."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings)
    names, found, count = [output.name for output in session.get_outputs()], [], 0
    inputs = {value.name: value for value in session.get_inputs()}
    shapes = {name: (1, value.shape[1], 0, value.shape[3]) for name, value in inputs.items() if name.startswith("past")}
    cache = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for chunk in chunks:
        feeds = {"input_ids": np.array([chunk]), "attention_mask": np.ones((1, count + len(chunk)), np.int64), **cache}
        if "position_ids" in inputs:
            feeds["position_ids"] = np.arange(count, count + len(chunk))[None]
        given = dict(zip(names, session.run(names, feeds), strict=True))
        cache = {name: given[name.replace("past_key_values", "present")] for name in cache}
        found.append(given["logits"][0])
        count += len(chunk)
    return np.concatenate(found)


def wanted(model: torch.nn.Module, tokens: Sequence[int]) -> Array:
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].numpy()


def kl(reference: Array, other: Array) -> float:
    """Mean KL divergence, nats."""
    p, q = (torch.log_softmax(torch.tensor(each, dtype=torch.float64), -1) for each in (reference, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def one_by_one(tokens: Sequence[int]) -> list[list[int]]:
    return [[token] for token in tokens]


# -- float models: every family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_family_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(random_checkpoint(tmp_path / "plain", name.split(",")[0], **MODELS[name]))
    export_onnx(checkpoint, tmp_path / "onnx")
    right = wanted(torch_model(checkpoint, tmp_path / "plain"), TOKENS)
    assert right.std() > 0.3
    for chunks in ([TOKENS], one_by_one(TOKENS), [TOKENS[:17], TOKENS[17:18], TOKENS[18:]]):
        np.testing.assert_allclose(logits(tmp_path / "onnx", chunks), right, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_stay_so_on_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    for tied in (True, False):
        folder = tmp_path / f"{tied}"
        checkpoint = open_checkpoint(random_checkpoint(folder / "plain", "llama", dtype, tie_word_embeddings=tied))
        report = export_onnx(checkpoint, folder / "onnx")
        model = torch_model(checkpoint, folder / "plain")
        np.testing.assert_allclose(logits(folder / "onnx", [TOKENS]), wanted(model, TOKENS), atol=1e-4)
        unpadded = sum(2 * parameter.numel() for parameter in model.parameters())
        assert report.files["model.onnx.data"] < unpadded + 64 * 60 + 2 * 64 * 8 * 4 + 4000  # angles and norms are float32


def test_a_tied_table_is_in_the_file_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        checkpoint = open_checkpoint(random_checkpoint(tmp_path / f"p{tied}", "llama", tie_word_embeddings=tied))
        sizes[tied] = export_onnx(checkpoint, tmp_path / f"o{tied}").files["model.onnx.data"]
    assert sizes[False] - sizes[True] == 96 * 64 * 4


# -- rounded models ------------------------------------------------------------------------------------------------------------

WAYS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "4 bits, groups of 32": (plain_rounding(4, 32), "MatMulNBits"),
    "4 bits, groups of 32, zero points": (plain_rounding(4, 32, symmetric=False), "MatMulNBits"),
    "3 bits, ragged groups of 64": (plain_rounding(3, 64), "MatMulNBits"),
    "3 bits, zero points": (plain_rounding(3, 128, symmetric=False), "MatMulNBits"),
    "2 bits, zero points": (plain_rounding(2, 32, symmetric=False), "MatMulNBits"),
    "2 bits, rows": (plain_rounding(2, 0), "MatMulNBits"),
    "8 bits, rows": (plain_rounding(8, 0), "MatMulNBits"),
    "6 bits, groups of 48": (plain_rounding(6, 48), "MatMulNBits"),
    "4 bits, groups of 8": (plain_rounding(4, 8), "MatMul"),
    "nf4": (lambda weight: coded(weight.numpy(), "nf4", block=64, double=True), "MatMulBnb4"),
    "fp4": (lambda weight: coded(weight.numpy(), "fp4", block=32, double=False), "MatMulBnb4"),
}


def rounded(stories: Path, folder: Path, way: Callable[[torch.Tensor], Any], *, table: bool = True) -> Checkpoint:
    return rounded_checkpoint(stories, folder, {"_proj": way, **({"embed_tokens": way} if table else {})})


@pytest.mark.parametrize("name", WAYS)
def test_rounded_layers_compute_what_their_codes_stand_for(name: str, stories: Path, tmp_path: Path) -> None:
    way, kernel = WAYS[name]
    checkpoint = rounded(stories, tmp_path / "rounded", way)
    right = wanted(torch_model(checkpoint, stories), TOKENS)
    report = export_onnx(checkpoint, tmp_path / "onnx", accuracy_level=0)
    assert report.kernels[kernel] >= 20
    np.testing.assert_allclose(logits(tmp_path / "onnx", [TOKENS]), right, atol=1e-4)
    np.testing.assert_allclose(logits(tmp_path / "onnx", one_by_one(TOKENS)), right, atol=1e-4)


@pytest.mark.parametrize(("bits", "most"), [(4, 5e-3), (8, 5e-3)])
def test_level_4_moves_the_answers_a_little(bits: int, most: float, stories: Path, tmp_path: Path) -> None:
    checkpoint = rounded(stories, tmp_path / "rounded", plain_rounding(bits, 32))
    right = wanted(torch_model(checkpoint, stories), TOKENS)
    export_onnx(checkpoint, tmp_path / "onnx")
    assert 1e-6 < kl(right, logits(tmp_path / "onnx", [TOKENS])) < most
    assert 1e-6 < kl(right, logits(tmp_path / "onnx", one_by_one(TOKENS))) < most


@pytest.mark.parametrize("level", [0, 4])
def test_int8_inputs_are_int8_at_every_level_and_near_what_was_simulated(level: int, stories: Path, tmp_path: Path) -> None:
    checkpoint = rounded_checkpoint(stories, tmp_path / "rounded", {"_proj": plain_rounding(8, 0)}, 8)
    report = export_onnx(checkpoint, tmp_path / "onnx", accuracy_level=level)
    nodes = onnx.load(tmp_path / "onnx/model.onnx", load_external_data=False).graph.node
    levels = [attribute.i for node in nodes if node.op_type == "MatMulNBits" for attribute in node.attribute
              if attribute.name == "accuracy_level"]
    assert levels == [4] * 20  # q, k, v are one product, gate and up another
    assert [remark.partition(": ")[0] for remark in report.remarks if "a scale for each block" in remark] == ["35 layers"]
    simulated, floats = logits_of(checkpoint), wanted(torch_model(checkpoint, stories), TOKENS)
    found = logits(tmp_path / "onnx", [TOKENS])
    assert 1e-6 < kl(simulated, found) < 4e-3
    assert kl(floats, simulated) > 1e-6
    np.testing.assert_allclose(logits(tmp_path / "onnx", one_by_one(TOKENS)), found, atol=0.1)


def logits_of(checkpoint: Checkpoint) -> Array:
    """What Whet computes itself of TOKENS."""
    skeleton = Skeleton(checkpoint)
    with torch.no_grad():
        hidden = skeleton.embed(torch.tensor([TOKENS]))
        for index in range(checkpoint.block_count):
            skeleton.block(index)
            hidden = skeleton.run(index, hidden)
        with skeleton.head() as head:
            return head(hidden)[0].numpy()


def test_layers_that_read_differently_are_products_of_their_own(stories: Path, tmp_path: Path) -> None:
    made = apply_to_checkpoint(open_checkpoint(stories), Recipe((
        Step("rtn", ("*.q_proj",), options=FrozenMap({"bits": 8, "activations": 8})),
        Step("rtn", ("*.k_proj", "*.v_proj"), options=FrozenMap({"bits": 8})))), target("x86-vnni"), out=tmp_path / "made")
    report = export_onnx(made, tmp_path / "onnx", accuracy_level=0)
    assert report.kernels["MatMulNBits"] == 15
    np.testing.assert_allclose(logits(tmp_path / "onnx", [TOKENS]), logits_of(made), atol=0.3)


@pytest.mark.parametrize(("kind", "settings"), [("qwen3", {"hidden_size": 56}), ("gemma", {"hidden_size": 56}), ("gpt2", {})])
def test_other_families_rounded(kind: str, settings: dict[str, int], tmp_path: Path) -> None:
    plain = random_checkpoint(tmp_path / "plain", kind, **settings)  # tables of 56 columns end in a ragged block
    way = plain_rounding(4, 32, symmetric=False)
    ends = ("_proj", "c_attn", "c_fc", "lm_head", "embed_tokens", "wte")
    checkpoint = rounded_checkpoint(plain, tmp_path / "rounded", dict.fromkeys(ends, way))
    report = export_onnx(checkpoint, tmp_path / "onnx", accuracy_level=0)
    assert (report.kernels["GatherBlockQuantized"], report.kernels["MatMulNBits"]) == (1, {"gpt2": 9}.get(kind, 13))
    np.testing.assert_allclose(logits(tmp_path / "onnx", [TOKENS]), wanted(torch_model(checkpoint, plain), TOKENS), atol=1e-4)


def test_layers_rounded_in_different_ways_are_products_of_their_own(stories: Path, tmp_path: Path) -> None:
    ways = {"q_proj": plain_rounding(4, 32), "k_proj": plain_rounding(8, 32), "gate_proj": plain_rounding(4, 32, symmetric=False)}
    checkpoint = rounded_checkpoint(stories, tmp_path / "rounded", ways)
    report = export_onnx(checkpoint, tmp_path / "onnx", accuracy_level=0)
    assert report.kernels == {"Gather": 1, "MatMulNBits": 15, "MatMul": 21}  # v, o, up, down and the head are plain
    np.testing.assert_allclose(logits(tmp_path / "onnx", [TOKENS]), wanted(torch_model(checkpoint, stories), TOKENS), atol=1e-4)


def test_a_rounded_tied_table_is_in_the_file_once(stories: Path, tmp_path: Path) -> None:
    export_onnx(rounded(stories, tmp_path / "rounded", plain_rounding(4, 32)), tmp_path / "onnx")
    model = onnx.load(tmp_path / "onnx/model.onnx", load_external_data=False)
    readers = {node.op_type: node for node in model.graph.node if node.name.startswith("model.embed_tokens")}
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer}
    gathered, multiplied = readers["GatherBlockQuantized"].input, readers["MatMulNBits"].input
    assert places[gathered[0]] == places[multiplied[1]]
    assert places[gathered[2]] == places[multiplied[2]]


# -- what the report says -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "said"), [
    (plain_rounding(3, 32), "36 layers: 3 bits have no kernel: the same codes are stored with 4"),
    (plain_rounding(4, 8), "36 layers: groups of 8 have no kernel"),
    (plain_rounding(2, 16), "36 layers: 2 bits in groups of 16 have no integer kernel"),
    (WAYS["nf4"][0], "1 layer: a table of nf4 has no kernel"),
    (WAYS["nf4"][0], "35 layers: nf4 is small and slow"),
])  # fmt: skip
def test_what_has_no_kernel_is_told_once_a_layer(way: Callable[[torch.Tensor], Any], said: str, stories: Path, tmp_path: Path) -> None:
    report = export_onnx(rounded(stories, tmp_path / "rounded", way), tmp_path / "onnx")
    assert [remark for remark in report.remarks if remark.startswith(said)], report.remarks


def test_what_is_as_one_thinks_is_not_told(stories: Path, tmp_path: Path) -> None:
    report = export_onnx(rounded(stories, tmp_path / "rounded", plain_rounding(4, 32)), tmp_path / "onnx")
    assert report.remarks == ()
    assert report.kernels == {"GatherBlockQuantized": 1, "MatMulNBits": 21}  # q, k, v are one product, gate and up another
    assert dict(report.files) == {file.name: file.stat().st_size for file in (tmp_path / "onnx").iterdir()}
    assert OnnxReport.from_plain(json.loads(json.dumps(report.to_plain()))) == report


def test_the_config_names_what_the_graph_has(stories: Path, tmp_path: Path) -> None:
    for source in (stories, random_checkpoint(tmp_path / "plain", "qwen3")):
        folder = tmp_path / f"{source.name}.onnx"
        export_onnx(open_checkpoint(source), folder)
        told = json.loads((folder / "genai_config.json").read_text())["model"]
        decoder = told["decoder"]
        graph = onnx.load(folder / decoder["filename"], load_external_data=False).graph
        layers = range(decoder["num_hidden_layers"])
        for what, part, values in (("past", "inputs", graph.input), ("present", "outputs", graph.output)):
            rest = {key: name for key, name in decoder[part].items() if not key.startswith(what)}
            named = {decoder[part][f"{what}_{end}_names"] % layer for end in ("key", "value") for layer in layers} | set(rest.values())
            assert {value.name for value in values} == named
        assert (told["bos_token_id"], told["eos_token_id"], told["vocab_size"]) == (1, 2, open_checkpoint(source).config["vocab_size"])


# -- refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "found"), [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 'the rotary scaling "yarn"'),
    ({"hidden_act": "tanh"}, 'the activation "tanh"'),
    ({"model_type": "granite"}, 'model_type "granite"'),
    ({"head_dim": 12}, "attention heads of 12 numbers"),
])  # fmt: skip
def test_what_the_graph_cannot_do_is_refused_by_name(change: dict[str, Any], found: str, stories: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(stories)
    odd = replace(checkpoint, config={**checkpoint.config, **change})
    with pytest.raises(Unsupported, match=found):
        export_onnx(odd, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("options", [{"accuracy_level": 2}, {"cache": "int8"}])
def test_wrong_options_are_refused(options: dict[str, Any], stories: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        export_onnx(open_checkpoint(stories), tmp_path / "onnx", **options)


def test_an_old_folder_stays_whole_where_the_export_fails(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/mine").write_text("x")
    monkeypatch.setattr(Drawing, "save", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        export_onnx(open_checkpoint(stories), tmp_path / "onnx")
    assert [file.name for file in tmp_path.rglob("*")] == ["onnx", "mine"]


# -- packing --------------------------------------------------------------------------------------------------------------------


@given(st.sampled_from([2, 3, 4, 5, 6, 7, 8]), st.sampled_from([0, 16, 32, 48, 64, 128, 512]), st.integers(1, 150), st.booleans(),
       st.integers(0, 100))  # fmt: skip
def test_packed_codes_are_our_codes(bits: int, block: int, columns: int, symmetric: bool, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((3, columns)).astype(np.float32)
    made = quantise(weight, weight_grid(weight, bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, either_sign=True))
    found = packed(made)
    assert found
    np.testing.assert_array_equal(nbits.weight_of(found.bits, found.block, columns, found.codes, found.scales, found.zeros), made.values)
    padded = np.pad(made.values, ((0, 0), (0, -columns % found.block)))  # what fills the last block up stands for 0 too
    np.testing.assert_array_equal(nbits.weight_of(found.bits, found.block, padded.shape[1], found.codes, found.scales, found.zeros), padded)


def test_symmetric_codes_need_no_zero_points() -> None:
    weight = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    for bits in (2, 3, 4, 8):
        found = packed(quantise(weight, weight_grid(weight, bits=bits, axis=1, block=32)))
        assert found
        assert found.zeros is None


@pytest.mark.parametrize(("group", "columns", "bits", "block"), [
    (128, 4096, 4, 128), (512, 4096, 4, 256), (0, 4096, 4, 256), (0, 4096, 2, 128), (0, 64, 4, 64), (0, 172, 8, 64), (48, 480, 4, 16),
    (8, 64, 4, None), (100, 400, 4, None), (16, 64, 2, 16), (48, 96, 2, 16), (32, 64, 2, 32), (0, 5, 4, 16),
    (128, 576, 4, 128), (128, 64, 4, 64),
])  # fmt: skip
def test_the_block_of_the_kernel(group: int, columns: int, bits: int, block: int | None) -> None:
    assert kernel_block(group, columns, bits) == block


def test_weights_become_one_only_where_they_are_alike() -> None:
    generator = np.random.default_rng(0)

    def made(bits: int, block: int, symmetric: bool = True) -> Any:
        weight = generator.standard_normal((2, 64)).astype(np.float32)
        return packed(quantise(weight, weight_grid(weight, bits=bits, symmetric=symmetric, axis=1, block=block)))

    one, two = made(4, 32, False), made(4, 32, False)
    both = joined([one, two])
    assert both
    rows = [nbits.weight_of(4, 32, 64, each.codes, each.scales, each.zeros) for each in (one, two, both)]
    np.testing.assert_array_equal(np.concatenate(rows[:2]), rows[2])
    assert joined([one, made(8, 32, False)]) is None
    assert joined([one, made(4, 16, False)]) is None
    assert joined([one, made(4, 32)]) is None


def test_a_grid_of_one_scale_for_all_is_packed_too() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    made: Quantised = quantise(weight, weight_grid(weight, bits=4))
    found = packed(made)
    assert found
    np.testing.assert_array_equal(nbits.weight_of(4, found.block, 40, found.codes, found.scales, found.zeros), made.values)
