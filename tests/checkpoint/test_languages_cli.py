"""``whet`` on the folder of a language model: for people and as JSON, and no traceback whatever is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.checkpoint.conftest import Models, Whet
from tests.checkpoint.made_up_models import changed_copy, saved_tokens

from whet.compress.checkpoint import open_checkpoint
from whet.core.artifact import Artifact
from whet.core.inventory import Inventory
from whet.core.plan import Plan

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def text(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the stories: about 3000 tokens."""
    found = tmp_path_factory.mktemp("text") / "eval.txt"
    found.write_text((assets / "stories260K" / "tinystories_val.txt").read_text()[:7000])
    return found


@pytest.fixture
def stories(assets: Path) -> Path:
    return assets / "stories260K"


def test_inspect(whet: Whet, stories: Path) -> None:
    done = whet("inspect", stories, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert Inventory.from_plain(found).parameters == found["parameters"]
    assert {"Linear", "Embedding", "Norm"} == {layer["op"] for layer in found["layers"]}
    assert sum(layer["op"] == "Linear" for layer in found["layers"]) == 5 * 7
    shown = whet("inspect", stories)
    assert shown.exit_code == 0, shown.output
    assert "model.embed_tokens" in shown.stdout
    assert "{" not in shown.stdout


def test_plan_apply_and_compare_say_the_same_size(whet: Whet, stories: Path, text: Path, tmp_path: Path) -> None:
    options = ("--bits", 4, "--group", 32)
    planned = whet("plan", stories, "--technique", "gptq", *options, "--json")
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    own = {name: value for name, value in plan.items() if not name.startswith("weight_bytes")}
    assert Plan.from_plain(own).recipe.steps[0].technique == "gptq"
    size = next(each["value"] for each in plan["costs"] if each["name"] == "size_bytes")
    made = whet("apply", "gptq", stories, "--calibration", text, *options, "-o", tmp_path / "out", "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert told["format"] == "checkpoint"
    assert told["id"] == Artifact.from_json((tmp_path / "out" / "whet.json").read_bytes()).artifact_id
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == size
    compared = whet("compare", stories, tmp_path / "out", "--data", text, "--json")
    assert compared.exit_code == 0, compared.output
    found = json.loads(compared.stdout)
    assert found["candidate_size"]["value"] == size
    assert 0 < found["kl"]["value"] < 0.1
    assert found["kl"]["interval"]["low"] <= found["kl"]["value"] <= found["kl"]["interval"]["high"]
    assert 0.7 < found["same_top_token"]["value"] < 1
    assert "verdict" not in found


def test_for_people(whet: Whet, stories: Path, text: Path, tmp_path: Path) -> None:
    lines = [("plan", stories, "--technique", "rtn", "--bits", 4), ("apply", "rtn", stories, "--bits", 8, "-o", tmp_path / "out"),
             ("inspect", tmp_path / "out"), ("compare", stories, tmp_path / "out", "--data", text)]
    for line in lines:
        done = whet(*line)
        assert done.exit_code == 0, done.output
        assert "{" not in done.stdout
        assert done.stderr == ""
    assert "Perplexity, original" in done.stdout
    assert "Same top token" in done.stdout


@pytest.mark.parametrize(("gate", "code"), [("kl<0.0000001", 3), ("kl<5", 0), ("nats<-1", 2), ("nats<0.9", 0), ("what<1", 2), ("kl<x", 2)])
def test_gates_end_with_their_code(whet: Whet, models: Models, tmp_path: Path, gate: str, code: int) -> None:
    from tests.checkpoint.test_compare_checkpoints import noisy

    other = noisy(models("llama"), tmp_path / "x")
    line = ("compare", models("llama"), other, "--data", saved_tokens(tmp_path), "--max-drop", gate)
    done, as_json = whet(*line), whet(*line, "--json")
    assert (done.exit_code, as_json.exit_code) == (code, code), done.output
    if code != 2:
        assert ("refused: " if code else "passed: ") in done.stdout
        assert json.loads(as_json.stdout)["verdict"]["passed"] == (code == 0)


def test_a_model_beside_itself_passes_any_gate(whet: Whet, models: Models, tmp_path: Path) -> None:
    done = whet("compare", models("llama"), models("llama"), "--data", saved_tokens(tmp_path), "--max-drop", "kl<0.000001")
    assert done.exit_code == 0, done.output


def test_recipes_name_layers(whet: Whet, models: Models, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[[step]]\napply = "rtn"\nto = ["model.embed_tokens", "lm_head"]\nwith = {bits = 8}\n'
                                     '[[step]]\napply = "rtn"\nto = ["op:Linear"]\nexcept = ["*.0.*"]\nwith = {bits = 4, group = 16}\n')
    for line in (("plan", models("llama"), "--recipe", tmp_path / "r.toml"),
                 ("apply", "--recipe", tmp_path / "r.toml", models("llama"), "-o", tmp_path / "out")):
        done = whet(*line)
        assert done.exit_code == 0, done.output
    found = {layer["name"]: layer["weight_dtype"] for layer in json.loads(whet("inspect", tmp_path / "out", "--json").stdout)["layers"]}
    assert (found["lm_head"], found["model.embed_tokens"]) == ("int8", "int8")
    assert found["model.layers.0.mlp.up_proj"] == "float32"
    assert found["model.layers.2.mlp.up_proj"] == "int4"


def test_force_replaces_an_artifact(whet: Whet, models: Models, tmp_path: Path) -> None:
    line = ("apply", "rtn", models("llama"), "-o", tmp_path / "out")
    assert whet(*line).exit_code == 0
    again = whet(*line)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert whet(*line, "--bits", 8, "--force").exit_code == 0


def broken(models: Models, folder: Path, how: str) -> Path:
    source = models("llama")
    if how == "another model's config":
        return changed_copy(source, folder, config={"intermediate_size": 48})
    if how == "an unknown family":
        return changed_copy(source, folder, config={"model_type": "mamba"})
    if how == "rounded elsewhere":
        return changed_copy(source, folder, config={"quantization_config": {"quant_method": "gptq"}})
    shutil.copytree(source, folder)
    if how == "cut short":
        (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-5])
    if how == "no weights":
        (folder / "model.safetensors").unlink()
    if how == "no config":
        (folder / "config.json").write_text("{")
    return folder


@pytest.mark.parametrize("how", ["another model's config", "an unknown family", "rounded elsewhere", "cut short", "no weights", "no config",
                                 "no tokenizer"])
@pytest.mark.parametrize("command", ["inspect", "plan", "apply", "compare"])
def test_whatever_is_wrong_is_one_sentence(whet: Whet, models: Models, tmp_path: Path, command: str, how: str) -> None:
    folder = broken(models, tmp_path / "x", how)
    (tmp_path / "t.txt").write_text("Once upon a time " * 100)
    data = tmp_path / "t.txt" if how == "no tokenizer" else saved_tokens(tmp_path)
    line = {"inspect": ("inspect", folder), "plan": ("plan", folder, "--technique", "gptq"),
            "apply": ("apply", "gptq", folder, "--calibration", data, "-o", tmp_path / "out"),
            "compare": ("compare", models("llama"), folder, "--data", data)}[command]
    if (command, how) in (("inspect", "no tokenizer"), ("plan", "no tokenizer"), ("inspect", "another model's config"),
                          ("plan", "another model's config")):
        pytest.skip("nothing of that is looked at")
    done = whet(*line)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("whet: ")
    assert "Traceback" not in done.output
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("config", "word"), [
    ({"num_attention_heads": 7}, "transformers makes no model of"), ({"hidden_act": "nothing"}, "KeyError: 'nothing'"),
    ({"max_position_embeddings": 0}, "0 for max_position_embeddings"), ({"num_attention_heads": 0}, "transformers makes no model of"),
    ({"max_position_embeddings": "many"}, "max_position_embeddings"),
])
def test_a_config_that_cannot_be_is_not_the_tokenizers_fault(whet: Whet, stories: Path, text: Path, tmp_path: Path,
                                                             config: dict[str, object], word: str) -> None:
    folder = changed_copy(stories, tmp_path / "x", config=config)
    for line in (("apply", "gptq", folder, "--calibration", text, "-o", tmp_path / "out"), ("compare", folder, stories, "--data", text)):
        done = whet(*line)
        assert done.exit_code == 2, done.output
        assert word in done.stderr
        assert "use the config.json of these files" in done.stderr
        assert "tokenizer" not in done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.layers.1.input_layernorm", "model.norm", "model.layers.1.mlp.up_proj"])
def test_numbers_that_are_none_are_found_by_name_anywhere(whet: Whet, stories: Path, text: Path, tmp_path: Path, name: str) -> None:
    weight = open_checkpoint(stories).tensor(f"{name}.weight").clone()
    weight.view(-1)[-1] = float("nan")
    folder = changed_copy(stories, tmp_path / "x", tensors={f"{name}.weight": weight})
    for line in (("apply", "gptq", folder, "--calibration", text), ("apply", "rtn", folder)):
        done = whet(*line, "-o", tmp_path / "out")
        assert done.exit_code == 2, done.output
        assert f"{name}.weight: NaN or infinity in it" in done.stderr
        assert not (tmp_path / "out").exists()
    compared = whet("compare", stories, folder, "--data", text, "--json")
    assert compared.exit_code == 2, compared.output
    assert f"compare {folder}: answers that are no numbers" in compared.stderr


@pytest.mark.parametrize(("line", "word"), [
    ("apply gptq MODEL -o OUT", "calibration"), ("apply gptq MODEL --calibration OUT/none.txt -o OUT", "no such file"),
    ("apply gptq MODEL --calibration SHORT -o OUT", "10 tokens|at least 128"), ("apply static MODEL -o OUT", "no integer kernel"),
    ("apply equalize MODEL -o OUT", "it works on graphs"),
    ("compare MODEL MODEL", "no text"), ("compare MODEL MODEL --data SHORT", "at least 128"),
    ("compare MODEL MODEL --data SHORT --metric accuracy", "metric"), ("apply rtn MODEL --to nothing -o OUT", "matches no layer"),
])
def test_questions_that_cannot_be_answered(whet: Whet, stories: Path, tmp_path: Path, line: str, word: str) -> None:
    import re

    (tmp_path / "short.txt").write_text("Once upon a time there was a cat")
    filled = line.replace("MODEL", str(stories)).replace("SHORT", str(tmp_path / "short.txt")).replace("OUT", str(tmp_path / "out"))
    done = whet(*filled.split())
    assert done.exit_code == 2, done.output
    assert re.search(word, done.stderr)
    assert not (tmp_path / "out").exists()
