"""Recipes done to checkpoints: what is named is rounded, the rest stays to the byte, and what is stored is what was simulated."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import KINDS, changed_copy, config_of, files_of, saved_tokens, tokens, with_weights_of
from tests.checkpoint.test_skeleton import streamed

import whet
from whet.compress.apply import apply
from whet.compress.artifacts import read_artifact
from whet.compress.checkpoint import Checkpoint, open_checkpoint, stored
from whet.compress.checkpoint.hidden import Hidden
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.tensor_writer import INDEX_NAME
from whet.compress.codebook import Coded
from whet.compress.grid import Quantised
from whet.compress.technique import LayerView, technique
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Unsupported
from whet.core.progress import reporting
from whet.core.recipe import Recipe, Step
from whet.device.files import write_file

applying = importlib.import_module("whet.compress.checkpoint.apply")
pytestmark = pytest.mark.usefixtures("one_torch_thread")
Options = Mapping[str, Any]


def step(name: str, *layers: str, exclude: tuple[str, ...] = (), **options: Any) -> Step:
    return Step(name, layers or ("*",), exclude, FrozenMap(options))


def applied(folder: Path, out: Path, *steps: Step, calibration: Any = None) -> Checkpoint:
    made = apply(folder, Recipe(steps), target=HOST, calibration=calibration, out=out)
    assert isinstance(made, Checkpoint)
    return made


def linear(checkpoint: Checkpoint) -> list[str]:
    return [name for index in range(checkpoint.block_count) for name in checkpoint.block_layers(index)]


def raw(checkpoint: Checkpoint, name: str) -> tuple[str, tuple[int, ...], bytes]:
    """A tensor as it lies in the file."""
    entry = checkpoint.entries[name][1]
    return entry.dtype, entry.shape, entry.file.read_bytes()[entry.begin : entry.begin + entry.size_bytes]


def is_whole(before: Checkpoint, made: Checkpoint, rounded: set[str]) -> None:
    """Only the weights of ``rounded`` changed, all others are there to the byte."""
    assert set(made.layouts) == rounded
    own = {name for layer in rounded for name in made.names_under(layer) if f"{layer}.bias" != name}
    kept = {name for name in before.entries if name.removesuffix(".weight") not in rounded}
    assert set(made.entries) == own | kept
    for name in kept:
        assert raw(made, name) == raw(before, name), name
    for file in made.files:  # nothing beside the tensors, and no tensor that nobody wrote
        assert file.path.stat().st_size == max(entry.begin + entry.size_bytes for entry in file.entries.values())


# -- data-free -------------------------------------------------------------------------------------------------------------------------


DATA_FREE: list[tuple[str, Options]] = [("rtn", {"bits": 4, "block": 16}), ("rtn", {"bits": 3, "symmetric": False}), ("nf4", {}),
                                        ("fp4", {"double": False}), ("hqq", {"bits": 4, "block": 32})]


@pytest.mark.parametrize(("name", "options"), DATA_FREE)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_layer_is_what_the_technique_makes_of_it(models: Models, tmp_path: Path, kind: str, name: str, options: Options) -> None:
    before = open_checkpoint(models(kind))
    made = applied(before.folder, tmp_path / "out", step(name, **options))
    is_whole(before, made, set(linear(before)))
    used = technique(name)
    for layer in linear(before)[:5]:
        weight = before.weight(layer).numpy()
        wanted = used.apply(LayerView(layer, "Linear", weight, scales="float16", either_sign=True), HOST, **used.checked(options)).weight
        found = made.rounded(layer)
        assert isinstance(found, Quantised | Coded)
        assert np.array_equal(found.codes, wanted.codes)
        assert found.values.tobytes() == wanted.values.tobytes()
        assert float(np.abs(found.values - weight).max()) < float(np.abs(weight).max())


@pytest.mark.parametrize("name", ["rtn", "gptq", "awq", "hqq", "autoround"])
def test_symmetric_grids_of_layers_and_tables_use_every_code(models: Models, tmp_path: Path, name: str) -> None:
    before = open_checkpoint(models("llama"))
    text = saved_tokens(tmp_path)
    few = {"steps": 2, "samples": 4} if name == "autoround" else {}
    table = step("rtn", "op:Embedding", bits=4, block=16)
    layers = step(name, "op:Linear", bits=4, block=16, symmetric=True, **few)
    made = applied(before.folder, tmp_path / "out", table, layers, calibration=text)
    assert set(made.layouts) == {*linear(before), before.family.embedding}
    for layer in made.layouts:
        found = made.rounded(layer)
        assert isinstance(found, Quantised)
        assert set(np.unique(found.codes)) == set(range(-8, 8))
        assert set(np.sign(found.grid.scale).ravel()) == {-1, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_rounded_and_computes_with_what_it_stores(models: Models, tmp_path: Path, kind: str) -> None:
    before = open_checkpoint(models(kind))
    made = applied(before.folder, tmp_path / "out", step("rtn", bits=4, block=16))
    is_whole(before, made, set(linear(before)))
    ids = tokens()
    with torch.no_grad():
        wanted = with_weights_of(made, before.folder)(ids)
    assert torch.equal(streamed(Skeleton(made), ids), wanted.last_hidden_state if made.family.encoder else wanted.logits)


@pytest.mark.parametrize(("kind", "changed"), [
    ("gemma", {}), ("gpt2", {}), ("llama", {}), ("bert", {}), ("qwen3", {"dtype": torch.bfloat16}), ("phi", {"dtype": torch.float16})])
def test_tables_and_heads_are_rounded_where_they_are_named(models: Models, tmp_path: Path, kind: str, changed: Options) -> None:
    before = open_checkpoint(models(kind, **changed))
    family = before.family
    names = {family.embedding} | ({family.head} if family.head and not before.tied else set())
    made = applied(before.folder, tmp_path / "out", step("rtn", *sorted(names), bits=8), step("rtn", "op:Linear", bits=4, block=32))
    is_whole(before, made, names | set(linear(before)))
    assert made.tied == before.tied
    assert {made.layouts[name].bits for name in names} == {8}
    ids = tokens()
    with torch.no_grad():
        wanted = with_weights_of(made, before.folder)(ids)
    assert torch.equal(streamed(Skeleton(made), ids), wanted.last_hidden_state if made.family.encoder else wanted.logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sixteen_bits_are_a_format_too(models: Models, tmp_path: Path, kind: str) -> None:
    """Alone, and beside layers that are rounded with calibration."""
    before, ids = open_checkpoint(models(kind)), tokens(12, seed=1)
    one = applied(before.folder, tmp_path / "one", step("float16"))
    two = applied(before.folder, tmp_path / "two", step("gptq", bits=8, enough=0.0), step("float16", "*.1.*"), calibration=ids)
    assert not one.layouts
    assert "quantization_config" not in one.config
    assert set(two.layouts) == {name for name in linear(before) if ".1." not in name}
    for layer in linear(before):
        for made in (one, two):
            if layer not in made.layouts:
                assert made.entries[f"{layer}.weight"][1].dtype == "F16"
                assert torch.equal(made.tensor(f"{layer}.weight"), before.tensor(f"{layer}.weight").half())
    with torch.no_grad():
        assert torch.equal(streamed(Skeleton(two), ids), with_weights_of(two, before.folder)(ids).logits)


def test_what_is_excepted_stays(models: Models, tmp_path: Path) -> None:
    before = open_checkpoint(models("llama"))
    made = applied(before.folder, tmp_path / "out", step("rtn", exclude=("*.down_proj", "model.layers.0.*"), bits=4))
    chosen = {name for name in linear(before) if not name.endswith("down_proj") and ".0." not in name}
    is_whole(before, made, chosen)
    ignored = config_of(tmp_path / "out")["quantization_config"]["ignore"]
    assert set(ignored) == set(linear(before)) - chosen | {"lm_head"}


def test_the_last_step_that_names_a_layer_rounds_it(models: Models, tmp_path: Path) -> None:
    before = open_checkpoint(models("llama"))
    made = applied(before.folder, tmp_path / "out", step("rtn", bits=3), step("rtn", "*.down_proj", bits=8, block=32))
    assert {made.layouts[name].bits for name in linear(before) if name.endswith("down_proj")} == {8}
    assert {made.layouts[name].bits for name in linear(before) if not name.endswith("down_proj")} == {3}


@pytest.mark.parametrize("first", [("rtn", {"bits": 8}), ("nf4", {})])
def test_what_is_rounded_already_can_be_rounded_again(models: Models, tmp_path: Path, first: tuple[str, Options]) -> None:
    before = applied(models("llama"), tmp_path / "first", step(first[0], **first[1]))
    made = applied(before.folder, tmp_path / "out", step("rtn", bits=4, block=16))
    is_whole_again = {name for name in before.entries if name.rpartition(".")[0] not in linear(before)}
    assert all(raw(made, name) == raw(before, name) for name in is_whole_again if name in made.entries)
    assert set(made.layouts.values()) == {stored.Layout("int", 4, 16)}
    assert {name for name in made.entries if "quant_state" in name or name.endswith("absmax")} == set()
    layer = linear(made)[2]
    view = LayerView(layer, "Linear", before.weight(layer).numpy(), scales="float16", either_sign=True)
    wanted = technique("rtn").apply(view, HOST, bits=4, block=16)
    assert torch.equal(made.weight(layer), torch.from_numpy(wanted.weight.values))
    assert read_artifact(tmp_path / "out").parent == read_artifact(tmp_path / "first").artifact_id


def test_some_layers_stay_as_an_earlier_recipe_left_them(models: Models, tmp_path: Path) -> None:
    before = applied(models("llama"), tmp_path / "first", step("rtn", "*.down_proj", bits=8))
    made = applied(before.folder, tmp_path / "out", step("rtn", "*.up_proj", bits=4))
    for layer in linear(before):
        if layer.endswith("down_proj"):
            assert made.layouts[layer] == before.layouts[layer]
            assert all(raw(made, name) == raw(before, name) for name in before.names_under(layer))
    assert sum(layer.endswith("up_proj") for layer in made.layouts) == 3
    with pytest.raises(Refused, match="no format that holds both"):
        applied(before.folder, tmp_path / "both", step("nf4", "*.up_proj"))
    assert not (tmp_path / "both").exists()


def test_tensors_that_no_module_has_are_kept(models: Models, tmp_path: Path) -> None:
    more = {"alone": torch.arange(5.0), "model.rotary.inv_freq": torch.ones(3), "model.layers.1.extra": torch.ones(2, dtype=torch.int64)}
    folder = changed_copy(models("llama"), tmp_path / "source", tensors=more)
    before = open_checkpoint(folder)
    is_whole(before, applied(folder, tmp_path / "out", step("rtn")), set(linear(before)))
    again = applied(folder, tmp_path / "again", step("gptq", enough=0.0), calibration=saved_tokens(tmp_path))
    is_whole(before, again, set(linear(before)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_in_and_shards_out(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("whet.compress.checkpoint.tensor_writer.shards_of.__defaults__", (6_000,))
    before = open_checkpoint(models("llama", shard="20KB", dtype=dtype))
    made = applied(before.folder, tmp_path / "out", step("rtn", bits=8))
    assert len(made.files) > 2
    held = {name: file.path.name for file in made.files for name in file.entries}
    assert json.loads((tmp_path / "out" / INDEX_NAME).read_text())["weight_map"] == held
    is_whole(before, made, set(linear(before)))


# -- calibrated ------------------------------------------------------------------------------------------------------------------------


def simulated(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the engine takes each block to give, in turn, as it goes."""
    found: list[torch.Tensor] = []
    through = applying._through

    def watched(block: Any, before: Hidden, after: Hidden) -> None:
        through(block, before, after)
        found.append(torch.cat(list(after)))

    monkeypatch.setattr(applying, "_through", watched)
    return found


CALIBRATED: list[tuple[str, tuple[Step, ...]]] = [
    ("gptq", (step("gptq", bits=4, block=16, enough=0.0),)),
    ("gptq asymmetric", (step("gptq", bits=3, symmetric=False, enough=0.0),)),
    ("awq", (step("awq", bits=4, block=16),)),
    ("awq then gptq", (step("awq", bits=4, block=16), step("gptq", bits=4, block=16, enough=0.0))),
    ("some by rtn", (step("gptq", bits=4, enough=0.0), step("rtn", "*.1.*", bits=8))),
]


@pytest.mark.parametrize(("kind", "changed"), [("llama", {}), ("gpt2", {"dtype": torch.float16}), ("gemma2", {"dtype": torch.bfloat16}),
                                              ("phi", {}), ("bert", {})])
@pytest.mark.parametrize("steps", [steps for _, steps in CALIBRATED], ids=[name for name, _ in CALIBRATED])
def test_the_written_model_computes_what_was_simulated(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str,
                                                       changed: Options, steps: tuple[Step, ...]) -> None:
    before, ids = open_checkpoint(models(kind, **changed)), tokens(12, seed=1)
    held = {name: before.tensor(name).clone() for name in before.entries}
    wanted = simulated(monkeypatch)
    made = apply(before, Recipe(steps), target=HOST, calibration=ids, out=tmp_path / "out")
    assert isinstance(made, Checkpoint)
    assert set(made.layouts) == set(linear(before))
    skeleton = Skeleton(made)
    with torch.no_grad():
        hidden = skeleton.embed(ids)
        for index in range(made.block_count):
            skeleton.block(index)
            hidden = skeleton.run(index, hidden)
            skeleton.empty(index)
            assert torch.equal(hidden, wanted[index])
    if not any(each.technique == "awq" for each in steps):  # which changes norms
        is_whole(before, made, set(linear(before)))
    assert all(torch.equal(before.tensor(name), tensor) for name, tensor in held.items())
    assert not list((tmp_path / "out").glob("hidden*"))


TABLES: list[tuple[str, Options, Step]] = [
    ("llama", {}, step("rtn", "op:Embedding", "op:Head", bits=2, block=16)),
    ("llama", {"shard": "20KB"}, step("rtn", "op:Embedding", bits=3, symmetric=False)),
    ("gpt2", {}, step("rtn", "op:Embedding", bits=3, block=16)), ("gemma", {}, step("rtn", "op:Embedding", bits=3, block=16)),
    ("qwen3", {}, step("float16", "op:Embedding")),
]


@pytest.mark.parametrize(("kind", "changed", "table"), TABLES)
def test_calibration_reads_the_table_as_it_was_rounded(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str,
                                                       changed: Options, table: Step) -> None:
    """What the first block is calibrated with is what the written model will give it; the float flow begins with the float table."""
    before, ids = open_checkpoint(models(kind, **changed)), tokens(6, seed=1)
    entering: dict[str, torch.Tensor] = {}
    through = applying._through

    def watched(block: Any, flow: Hidden, after: Hidden) -> None:
        if block.index == 0:
            entering[flow.path.name] = torch.cat(list(flow))
        through(block, flow, after)

    monkeypatch.setattr(applying, "_through", watched)
    made = applied(before.folder, tmp_path / "out", step("autoround", bits=4, block=16, steps=2), table, calibration=ids)
    assert made.family.embedding in made.layouts or made.entries[f"{made.family.embedding}.weight"][1].dtype == "F16"
    rounded, exact = (Skeleton(checkpoint).embed(ids) for checkpoint in (made, before))
    assert not torch.equal(rounded, exact)
    assert torch.equal(entering["hidden-0"], rounded)
    assert torch.equal(entering["exact-0"], exact)


def test_calibration_follows_what_was_rounded_before(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second block reads what the rounded first one gives, and so does the second layer of a block."""
    from whet.compress.checkpoint import shows

    seen: dict[str, torch.Tensor] = {}
    moments = shows.Moments.__init__

    def watched(self: Any, block: Any, readers: Any, hidden: Any) -> None:
        moments(self, block, readers, hidden)
        seen[block.whole(readers.layers[0])] = self.gram.clone()

    monkeypatch.setattr(shows.Moments, "__init__", watched)
    before, ids = open_checkpoint(models("llama")), tokens(12, seed=1)
    made = applied(before.folder, tmp_path / "out", step("gptq", bits=3, enough=0.0), calibration=ids)
    model = with_weights_of(made, before.folder)
    inputs: dict[str, torch.Tensor] = {}

    def watch(name: str) -> None:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.update({name: args[0].reshape(-1, args[0].shape[-1])}))

    for name in seen:
        watch(name)
    with torch.no_grad():
        model(ids)
    assert len(seen) == 4 * 3
    for name, gram in seen.items():
        x = inputs[name].double()
        assert torch.allclose(gram.double(), x.t() @ x / len(x), rtol=1e-4, atol=1e-5), name


def test_gptq_loses_less_than_plain_rounding(models: Models, tmp_path: Path) -> None:
    before, ids = open_checkpoint(models("llama")), tokens(64, seed=1)
    plain = applied(before.folder, tmp_path / "rtn", step("rtn", bits=3))
    better = applied(before.folder, tmp_path / "gptq", step("gptq", bits=3), calibration=ids)
    wanted, *found = (streamed(Skeleton(each), ids) for each in (before, plain, better))
    assert float((found[1] - wanted).square().mean()) < 0.8 * float((found[0] - wanted).square().mean())


def test_no_more_windows_than_asked_are_read(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = simulated(monkeypatch)
    text = assets / "stories260K" / "tinystories_val.txt"
    applied(assets / "stories260K", tmp_path / "out", step("gptq", bits=4, samples=2, search=False), calibration=text)
    assert [len(each) for each in wanted] == [2] * 5


# -- the folder ------------------------------------------------------------------------------------------------------------------------


def test_the_folder_is_whole_and_says_what_it_is(assets: Path, tmp_path: Path) -> None:
    source = assets / "stories260K"
    applied(source, tmp_path / "out", step("rtn", bits=4, block=32))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "whet.json", "tokenizer.json", "tokenizer_config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    artifact = read_artifact(tmp_path / "out")
    assert artifact.format == "checkpoint"
    assert {file.path for file in artifact.files} == names - {"whet.json"}
    assert artifact.recipe == Recipe((step("rtn", bits=4, block=32),))
    config = config_of(tmp_path / "out")
    assert {name: value for name, value in config.items() if name != "quantization_config"} == config_of(source)
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_the_same_work_gives_the_same_bytes(models: Models, tmp_path: Path) -> None:
    for name in ("one", "two"):
        applied(models("llama"), tmp_path / name, step("gptq", bits=4, enough=0.0), calibration=tokens(12, seed=1))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_an_artifact_may_be_replaced_and_nothing_else(models: Models, tmp_path: Path) -> None:
    source, out = models("llama"), tmp_path / "out"
    applied(source, out, step("rtn", bits=8))
    (tmp_path / ".out.whet-old").mkdir()  # left by a run that was killed while it moved
    (tmp_path / ".out.whet-old" / "x").write_text("x")
    applied(source, out, step("rtn", bits=4))
    assert {layout.bits for layout in open_checkpoint(out).layouts.values()} == {4}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.jpg").write_text("x")
    (tmp_path / "file").write_text("x")
    for place, word in ((other, "other files"), (source, "other files"), (tmp_path / "file", "a file of that name")):
        before = files_of(place) if place.is_dir() else place.read_text()
        with pytest.raises(Refused, match=word):
            applied(source, place, step("rtn"))
        assert before == (files_of(place) if place.is_dir() else place.read_text())
    assert not list(tmp_path.glob(".*"))


def test_an_empty_folder_is_filled(models: Models, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert applied(models("llama"), tmp_path / "out", step("rtn")).layouts


# -- what cannot be done ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "kind", "word"), [
    ((step("gptq"),), Refused, "gptq without calibration"),
    ((step("rtn", "nothing"),), Refused, "matches no layer"),
    ((step("rtn", colour="red"),), Refused, "no such option"),
    ((step("rtn", bits=9),), Refused, "bits = 9"),
    ((step("what"),), Refused, "none of that name"),
    ((step("equalize"),), Unsupported, "works on graphs"),
    ((step("nf4", "model.embed_tokens"),), Unsupported, "code books are for the linear layers"),
    ((step("rtn"), step("nf4", "*.down_proj")), Refused, "no format that holds both"),
])
def test_questions_come_before_work(models: Models, tmp_path: Path, steps: tuple[Step, ...], kind: type[Exception], word: str) -> None:
    with pytest.raises(kind, match=word):
        applied(models("llama"), tmp_path / "out", *steps)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_to_write_to_is_needed(models: Models) -> None:
    with pytest.raises(Refused, match="give out="):
        apply(models("llama"), "rtn")


@pytest.mark.parametrize(("name", "bad"), [("rtn", "nan"), ("rtn", "inf"), ("nf4", "nan"), ("gptq", "nan"), ("awq", "inf"), ("hqq", "nan")])
def test_a_weight_that_is_no_number_is_refused_by_name(models: Models, tmp_path: Path, name: str, bad: str) -> None:
    layer = "model.layers.1.mlp.up_proj"
    weight = open_checkpoint(models("llama")).tensor(f"{layer}.weight").clone()
    weight[3, 5] = float(bad)
    folder = changed_copy(models("llama"), tmp_path / "x", tensors={f"{layer}.weight": weight})
    with pytest.raises(Refused, match="NaN or infinity") as told:
        applied(folder, tmp_path / "out", step(name), calibration=saved_tokens(tmp_path) if technique(name).needs != "nothing" else None)
    assert layer in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_in_the_place(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", full)
        with pytest.raises(Refused, match="the disk is full"):
            applied(models("llama"), tmp_path / "out", step("rtn"))
    assert not (tmp_path / "out").exists()
    applied(models("llama"), tmp_path / "out", step("rtn"))


# -- going on --------------------------------------------------------------------------------------------------------------------------


def beside(out: Path) -> Path:
    return out.parent / f".{out.name}.whet-part"


def stopped(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, at: int, *steps: Step, calibration: Any = None) -> None:
    """A run that ends with Ctrl-C once ``at`` blocks are done."""
    from whet.compress.checkpoint.destination import Destination

    finished = Destination.finished

    def watched(self: Destination, blocks: int) -> None:
        finished(self, blocks)
        if blocks == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Destination, "finished", watched)
        with pytest.raises(KeyboardInterrupt):
            applied(folder, out, *steps, calibration=calibration)


@pytest.mark.parametrize(("name", "options"), [("rtn", {}), ("gptq", {"enough": 0.0}), ("awq", {"block": 16})])
@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_run_goes_on_behind_the_last_block(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
                                                     options: Options, at: int) -> None:
    calibration = None if name == "rtn" else tokens(12, seed=1)
    stopped(monkeypatch, models("llama"), tmp_path / "out", at, step(name, **options), calibration=calibration)
    assert not (tmp_path / "out").exists()
    assert json.loads((beside(tmp_path / "out") / "journal.json").read_text())["done"] == at
    visited: list[str] = []
    if name == "rtn":
        rounded = applying._rounded
        monkeypatch.setattr(applying, "_rounded", lambda *given: visited.append(given[1]) or rounded(*given))
    else:
        fill = Skeleton.block
        monkeypatch.setattr(Skeleton, "block",
                            lambda self, index, **how: visited.append(f"model.layers.{index}.") or fill(self, index, **how))
    applied(models("llama"), tmp_path / "out", step(name, **options), calibration=calibration)
    assert {name.split(".")[2] for name in visited} == {str(index) for index in range(at, 3)}
    applied(models("llama"), tmp_path / "whole", step(name, **options), calibration=calibration)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert not beside(tmp_path / "out").exists()


def test_a_stopped_run_with_a_rounded_table_goes_on(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (step("rtn", "op:Embedding", "op:Head", bits=3, block=16), step("gptq", bits=3, enough=0.0))
    stopped(monkeypatch, models("llama"), tmp_path / "out", 1, *steps, calibration=tokens(12, seed=1))
    for place in ("out", "whole"):
        applied(models("llama"), tmp_path / place, *steps, calibration=tokens(12, seed=1))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("change", ["recipe", "calibration", "weights", "config"])
def test_what_other_work_left_is_not_gone_on_with(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    folder, out = changed_copy(models("llama"), tmp_path / "x"), tmp_path / "out"
    options: dict[str, Any] = {"enough": 0.0}
    stopped(monkeypatch, folder, out, 2, step("gptq", **options), calibration=tokens(12, seed=1))
    (beside(out) / "left").mkdir()
    if change == "recipe":
        options["bits"] = 3
    if change == "weights":
        more = changed_copy(folder, tmp_path / "y", tensors={"model.norm.weight": torch.ones(32)})
        (more / "model.safetensors").rename(folder / "model.safetensors")
    if change == "config":
        write_file(folder / "config.json", json.dumps({**config_of(folder), "rms_norm_eps": 1e-3}))
    ids = tokens(12, seed=2 if change == "calibration" else 1)
    applied(folder, out, step("gptq", **options), calibration=ids)
    applied(folder, tmp_path / "whole", step("gptq", **options), calibration=ids)
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("journal", ["", "{", "[]", '{"done": 2}', '{"key": 3, "done": "x"}'])
def test_a_broken_journal_is_no_journal(models: Models, tmp_path: Path, journal: str) -> None:
    out = tmp_path / "out"
    beside(out).mkdir()
    (beside(out) / "journal.json").write_text(journal)
    (beside(out) / "model.safetensors").write_bytes(b"what an earlier version left")
    applied(models("llama"), out, step("rtn"))
    applied(models("llama"), tmp_path / "whole", step("rtn"))
    assert files_of(out) == files_of(tmp_path / "whole")


def test_two_runs_at_once_do_not_mix(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused, whatever it wants to write there, and does not disturb the first."""
    from whet.compress.checkpoint.destination import Destination

    finished, told = Destination.finished, []

    def meanwhile(self: Destination, blocks: int) -> None:
        monkeypatch.setattr(Destination, "finished", finished)
        for bits in (4, 3):
            with pytest.raises(Refused, match="another run that is writing it") as error:
                applied(models("llama"), tmp_path / "out", step("rtn", bits=bits))
            told.append(str(error.value))
        finished(self, blocks)

    monkeypatch.setattr(Destination, "finished", meanwhile)
    applied(models("llama"), tmp_path / "out", step("rtn"))
    applied(models("llama"), tmp_path / "whole", step("rtn"))
    assert len(told) == 2
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_second_run_is_refused_until_the_folder_is_in_its_place(models: Models, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the moment before the move either, when everything is written."""
    import os

    replace, told = os.replace, []

    def meanwhile(source: Any, place: Any) -> None:
        if Path(place) == tmp_path / "out":
            monkeypatch.setattr(os, "replace", replace)
            with pytest.raises(Refused, match="another run"):
                applied(models("llama"), tmp_path / "out", step("rtn", bits=3))
            told.append(1)
        replace(source, place)

    monkeypatch.setattr(os, "replace", meanwhile)
    assert {layout.bits for layout in applied(models("llama"), tmp_path / "out", step("rtn")).layouts.values()} == {4}
    assert told


def test_the_error_of_each_block_is_told_as_it_goes(models: Models, tmp_path: Path) -> None:
    class Notes:
        def __init__(self) -> None:
            self.errors: list[float] = []

        def start(self, name: str, total: int | None) -> int:
            return 0

        def advance(self, task: int, steps: int, note: str) -> None:
            if found := re.search(r"error (-?[\d.]+) dB", note):
                self.errors.append(float(found.group(1)))

        def stop(self, task: int) -> None:
            pass

    told = {}
    for bits in (2, 4, 8):
        notes = Notes()
        with reporting(notes):
            whet.apply(str(models("llama")), "gptq", options={"bits": bits}, calibration=tokens(4), out=tmp_path / f"{bits}")
        assert len(notes.errors) == 3
        told[bits] = notes.errors
    assert all(coarse - 6 > fine for finer, coarser in ((4, 2), (8, 4)) for coarse, fine in zip(told[coarser], told[finer], strict=True))
