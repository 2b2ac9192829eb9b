"""Encoders as ONNX: the graph computes what transformers computes, for any batch, length and padding, and Whet's graph body takes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.checkpoint.made_up_models import made_up, with_weights_of
from tests.compress.rounded_checkpoints import plain_rounding, rounded_checkpoint

import whet
from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.onnx_export import export_onnx
from whet.core.errors import Refused, Unsupported
from whet.device.language.folder import open_folder

pytestmark = pytest.mark.usefixtures("one_torch_thread")
Array = Any
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {}, "gelu by tanh": {"hidden_act": "gelu_new"}, "relu": {"hidden_act": "relu"}, "silu": {"hidden_act": "silu"},
    "one kind of token": {"type_vocab_size": 1}, "other heads": {"num_attention_heads": 2, "num_hidden_layers": 1},
    "a large epsilon": {"layer_norm_eps": 0.3}, "float16": {"dtype": torch.float16},
}
QKV = ("query", "key", "value")


def texts(count: int = 3, length: int = 17) -> dict[str, Array]:
    """A batch of which every text but the first is padded; the second half of each text is of another kind."""
    random = np.random.default_rng(0)
    lengths = np.maximum(1, length - 5 * np.arange(count))[:, None]
    places = np.arange(length)[None]
    mask = (places < lengths).astype(np.int64)
    return {"input_ids": random.integers(3, 96, (count, length)) * mask, "attention_mask": mask,
            "token_type_ids": (places >= lengths // 2) * mask}


def states(folder: Path, batch: dict[str, Array]) -> Array:
    """[batch, tokens, hidden] of the exported graph."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings)
    names = [value.name for value in session.get_inputs()]
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state"]
    found: Array = session.run(None, {name: batch[name] for name in names})[0]
    return found


def wanted(checkpoint: Checkpoint, original: Path, batch: dict[str, Array]) -> Array:
    """The same from transformers, with the numbers that the checkpoint stands for."""
    model = with_weights_of(checkpoint, original)
    with torch.no_grad():
        return model(**{name: torch.from_numpy(each) for name, each in batch.items()}).last_hidden_state.numpy()


def agree(found: Array, right: Array, batch: dict[str, Array], most: float = 1e-4) -> None:
    seen = batch["attention_mask"].astype(bool)
    assert right[seen].std() > 0.3
    np.testing.assert_allclose(found[seen], right[seen], atol=most)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_encoder_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    folder = made_up(tmp_path / "plain", "bert", **VARIANTS[name])
    checkpoint = open_checkpoint(folder)
    export_onnx(checkpoint, tmp_path / "onnx")
    asks = [value.name for value in onnx.load(tmp_path / "onnx/model.onnx", load_external_data=False).graph.input]
    assert asks == ["input_ids", "attention_mask", "token_type_ids"][: 2 if name == "one kind of token" else 3]
    for batch in (texts(), texts(1, 64), texts(5, 3)):
        if "token_type_ids" not in asks:
            batch["token_type_ids"] *= 0
        agree(states(tmp_path / "onnx", batch), wanted(checkpoint, folder, batch), batch)


def test_padding_changes_nothing(tmp_path: Path) -> None:
    """A text alone, and the same text in a batch behind which others' ends are filled up."""
    export_onnx(open_checkpoint(made_up(tmp_path / "plain", "bert")), tmp_path / "onnx")
    batch = texts(4, 20)
    together = states(tmp_path / "onnx", batch)
    for index, length in enumerate(batch["attention_mask"].sum(1)):
        alone = states(tmp_path / "onnx", {name: each[index : index + 1, :length] for name, each in batch.items()})
        np.testing.assert_allclose(together[index, :length], alone[0], atol=1e-5)


def test_more_tokens_than_positions_are_an_error(tmp_path: Path) -> None:
    export_onnx(open_checkpoint(made_up(tmp_path / "plain", "bert")), tmp_path / "onnx")
    with pytest.raises(Exception, match="position_embeddings"):  # onnxruntime's own kinds of exception have no common name
        states(tmp_path / "onnx", texts(1, 65))


@pytest.mark.parametrize(("bits", "block", "symmetric", "kernel"), [
    (4, 16, True, "MatMulNBits"), (4, 32, False, "MatMulNBits"), (3, 16, False, "MatMulNBits"), (8, 0, True, "MatMulNBits"),
    (4, 8, True, "MatMul")])
def test_rounded_encoders_compute_what_their_codes_stand_for(bits: int, block: int, symmetric: bool, kernel: str, tmp_path: Path) -> None:
    folder, way = made_up(tmp_path / "plain", "bert"), plain_rounding(bits, block, symmetric=symmetric)
    ends = (*QKV, "output.dense", "intermediate.dense", "word_embeddings")
    checkpoint = rounded_checkpoint(folder, tmp_path / "rounded", dict.fromkeys(ends, way))
    report = export_onnx(checkpoint, tmp_path / "onnx", accuracy_level=0)
    assert report.kernels[kernel] == 3 * 4  # query, key and value are one product
    assert report.kernels.get("GatherBlockQuantized", 0) == (kernel == "MatMulNBits")
    agree(states(tmp_path / "onnx", texts()), wanted(checkpoint, folder, texts()), texts())


def test_layers_rounded_differently_are_products_of_their_own_here_too(tmp_path: Path) -> None:
    folder = made_up(tmp_path / "plain", "bert")
    ways = {"query": plain_rounding(4, 16), "key": plain_rounding(8, 16), "output.dense": plain_rounding(4, 16)}
    checkpoint = rounded_checkpoint(folder, tmp_path / "rounded", ways)
    report = export_onnx(checkpoint, tmp_path / "onnx", accuracy_level=0)
    assert report.kernels == {"Gather": 3, "MatMulNBits": 12, "MatMul": 6}
    agree(states(tmp_path / "onnx", texts()), wanted(checkpoint, folder, texts()), texts())


def test_int8_activations_move_the_states_a_little(tmp_path: Path) -> None:
    folder = made_up(tmp_path / "plain", "bert")
    checkpoint = rounded_checkpoint(folder, tmp_path / "rounded", dict.fromkeys(QKV, plain_rounding(4, 16)))
    export_onnx(checkpoint, tmp_path / "onnx")
    moved = np.abs(states(tmp_path / "onnx", texts(1)) - wanted(checkpoint, folder, texts(1))).max()
    assert 1e-6 < moved < 0.05


def test_the_folder_holds_what_is_needed_to_read_text(tmp_path: Path) -> None:
    folder = made_up(tmp_path / "plain", "bert")
    report = export_onnx(open_checkpoint(folder), tmp_path / "bare")
    assert report.remarks == ("the checkpoint has no tokenizer: texts must be made tokens elsewhere",)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).write_text(name)
    export_onnx(open_checkpoint(folder), tmp_path / "onnx")
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == [
        "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    with pytest.raises(Refused, match="encoder"):
        open_folder(tmp_path / "onnx")


@pytest.mark.slow
def test_the_graph_body_takes_the_file(tmp_path: Path) -> None:
    """inspect, and compare a rounded export with the float one on the same tokens."""
    folder = made_up(tmp_path / "plain", "bert")
    checkpoint = rounded_checkpoint(folder, tmp_path / "rounded", dict.fromkeys(QKV, plain_rounding(4, 16)))
    for name, each in (("float", open_checkpoint(folder)), ("small", checkpoint)):
        export_onnx(each, tmp_path / name)
    found = whet.inspect(whet.load(tmp_path / "small/model.onnx"))
    products = [layer for layer in found.layers if layer.op == "MatMulNBits"]
    assert len(products) == 3
    assert {layer.macs for layer in products} == {3 * 32 * 32}
    np.savez(tmp_path / "eval.npz", **texts(6, 17))
    compared = whet.compare(tmp_path / "float/model.onnx", tmp_path / "small/model.onnx", data=tmp_path / "eval.npz", seconds=0.1)
    assert compared.quality is not None
    assert 5 < compared.quality.sqnr_db.value < 60
    assert compared.candidate["size_bytes"].value < compared.parent["size_bytes"].value


@pytest.mark.parametrize(("change", "found"), [
    ({"hidden_act": "tanh"}, 'the activation "tanh"'), ({"is_decoder": True}, "is_decoder in the config.json"),
    ({"position_embedding_type": "relative_key"}, "relative_key"), ({"model_type": "electra"}, 'model_type "electra"'),
])
def test_what_an_encoders_graph_cannot_do_is_refused_by_name(change: dict[str, Any], found: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(made_up(tmp_path / "plain", "bert"))
    with pytest.raises(Unsupported, match=found):
        export_onnx(replace(checkpoint, config={**checkpoint.config, **change}), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_an_export_for_transformers_loads_as_a_model_without_a_head(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = made_up(tmp_path / "plain", "bert")
    whet.apply(str(folder), "rtn", options={"bits": 4, "block": 64}, out=tmp_path / "rounded")
    made = open_checkpoint(tmp_path / "rounded")
    whet.export(made, tmp_path / "hf", format="hf")  # 64 divide no row: all is float again
    assert json.loads((tmp_path / "hf/config.json").read_text()).get("quantization_config") is None
    model = AutoModel.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    batch = texts()
    with torch.no_grad():
        got = model(**{name: torch.from_numpy(each) for name, each in batch.items()}).last_hidden_state.numpy()
    np.testing.assert_array_equal(got, wanted(made, folder, batch))


def test_gguf_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match='the family "bert"'):
        whet.export(made_up(tmp_path / "plain", "bert"), tmp_path / "x.gguf", format="gguf")


def test_a_manifest_speaks_of_states(tmp_path: Path) -> None:
    from whet.core.artifact import Artifact

    for kind, name, last in (("bert", "last_hidden_state", 32), ("llama", "logits", 96)):
        whet.apply(str(made_up(tmp_path / kind, kind)), "rtn", out=tmp_path / f"{kind} rounded")
        told = Artifact.from_json((tmp_path / f"{kind} rounded/whet.json").read_bytes()).outputs
        assert [(each.name, each.shape[-1]) for each in told] == [(name, last)]
