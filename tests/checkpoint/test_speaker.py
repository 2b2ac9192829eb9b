"""A model whole in memory says of texts, in batches, what the slow way says of each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.conftest import HOST, Models
from tests.checkpoint.made_up_models import KINDS, changed_copy, of_transformers, tokens, with_weights_of
from tests.checkpoint.test_skeleton import streamed
from tests.checkpoint.test_text import with_words
from tests.slow_papers import likelihoods as slow

from whet.compress.apply import apply
from whet.compress.checkpoint import Checkpoint, open_checkpoint, speaker
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.checkpoint.speaker import Speaker, windows_in
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Unsupported
from whet.core.progress import reporting
from whet.core.recipe import Recipe, Step

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROOM = 64
DECODERS = sorted(set(KINDS) - {"bert"})


@pytest.fixture
def reader(models: Models, tmp_path: Path) -> Checkpoint:
    return with_words(models("llama"), tmp_path / "model", starts=True)


def questions() -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations of many lengths; some have the same beginning, and two differ in their last token alone."""
    rows = tokens(6, 30, seed=4).tolist()
    cuts = [(12, 1), (3, 5), (20, 9), (1, 1), (7, 2), (29, 1)]
    return [*((row[:at], row[at : at + count]) for row, (at, count) in zip(rows, cuts, strict=True)), (rows[0][:12], [rows[0][12] + 1]),
            (rows[0][:11], rows[0][11:13])]


@pytest.mark.parametrize("kind", DECODERS)
def test_likelihoods_are_those_of_the_slow_way(models: Models, tmp_path: Path, kind: str) -> None:
    """Those of texts that the model would write too, and of long ones."""
    model, said = of_transformers(models(kind)), Speaker(with_words(models(kind), tmp_path / "x", starts=True))
    own = tokens(1, 5, seed=8)[0].tolist()
    asked = [*questions(), (own, slow.written(model, own, 3, set()))]
    wanted = [slow.likelihood(model, *each, ROOM) for each in asked]
    found = said.likelihoods(asked)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in wanted], abs=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert found[-1][1]
    assert not found[0][1]


def test_a_context_that_is_too_long_loses_its_beginning(models: Models, reader: Checkpoint) -> None:
    model, row = of_transformers(models("llama")), tokens(1, 90, seed=5)[0].tolist()
    asked = [(row[:80], row[80:]), (row[:64], row[64:65]), (row[:63], row[63:65]), (row[:20], row[20:84])]
    wanted = [slow.likelihood(model, *each, ROOM)[0] for each in asked]
    assert [nats for nats, _ in Speaker(reader).likelihoods(asked)] == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize(("context", "wanted"), [([], [5]), ([5], [6] * 65)])
def test_what_cannot_be_scored_is_refused(reader: Checkpoint, context: list[int], wanted: list[int]) -> None:
    with pytest.raises(Refused, match=rf"{len(context)} tokens of context and {len(wanted)} to score; the model sees 64"):
        Speaker(reader).likelihoods([(context, wanted)])


def test_nothing_is_certain(reader: Checkpoint) -> None:
    assert Speaker(reader).likelihoods([([5, 6], [])]) == [(0.0, True)]


@pytest.mark.parametrize(("at_once", "logits"), [(1, 1 << 26), (70, 1 << 26), (4096, 96 * 4), (4096, 1)])
def test_batches_of_any_size_say_the_same(reader: Checkpoint, monkeypatch: pytest.MonkeyPatch, at_once: int, logits: int) -> None:
    whole = Speaker(reader).likelihoods(questions())
    monkeypatch.setattr(speaker, "TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(speaker, "LOGITS", logits)
    cut = Speaker(reader).likelihoods(questions())
    assert [nats for nats, _ in cut] == pytest.approx([nats for nats, _ in whole], abs=1e-4)


def test_what_questions_have_in_common_runs_once(reader: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    said, sizes = Speaker(reader), []
    forward = said._model.forward
    monkeypatch.setattr(said._model, "forward", lambda ids, **named: sizes.append(ids.shape) or forward(ids, **named))
    said.likelihoods([([5, 6, 7], [8]), ([5, 6, 7], [9]), ([5, 6], [7, 10]), ([5, 6, 7], [11])])
    assert sizes == [(1, 3)]


@pytest.mark.parametrize("length", [1, 5, 24, 30, 200])
def test_rolling_scores_each_token_once(models: Models, reader: Checkpoint, length: int) -> None:
    model, texts = of_transformers(models("llama")), [row.tolist() for row in tokens(2, 29, seed=6)] + [[7]]
    wanted = [slow.rolling(model, text, 1, min(length, ROOM)) for text in texts]
    assert Speaker(reader).rolling(texts, length=length) == pytest.approx(wanted, abs=5e-4)


def test_the_windows_of_the_harness() -> None:
    """The example in the docstring of lm_eval's ``loglikelihood_rolling``: what goes in is never longer than 4."""
    found = windows_in(range(10), 99, 4)
    assert found == [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert all(len(before) + len(wanted) - 1 <= 4 for before, wanted in found)
    assert windows_in([], 99, 4) == []


@pytest.mark.parametrize("kind", DECODERS)
def test_it_writes_what_the_slow_way_writes(models: Models, tmp_path: Path, kind: str) -> None:
    model, said = of_transformers(models(kind)), Speaker(with_words(models(kind), tmp_path / "x", starts=True))
    prompts = [row[:length].tolist() for row, length in zip(tokens(5, 20, seed=7), (9, 20, 9, 1, 9), strict=True)]
    wanted = [slow.written(model, prompt, 8, {2}) for prompt in prompts]
    found = said.written(prompts, most=8)
    assert found == [said.tokenizer.decode(each, skip_special_tokens=True) for each in wanted]


def test_it_writes_stories(assets: Path) -> None:
    """Prompts of one length and of several, which a model that has learned something goes on with in different ways."""
    folder = assets / "stories260K"
    said = Speaker(open_checkpoint(folder))
    prompts = [said.encode(text) for text in ("Once upon a time", "Once upon a day", "Tom saw a big dog and", "She")]
    wanted = [said.tokenizer.decode(slow.written(of_transformers(folder), prompt, 20, {2})) for prompt in prompts]
    assert said.written(prompts, most=20) == wanted
    assert len(set(wanted)) == 3


# A prompt behind which a made-up model writes "w78 w78 w38 w52 w80 w38 ...".
VARIED = tokens(6, 9, seed=7)[2].tolist()


def test_it_ends_where_it_is_told_to(models: Models, tmp_path: Path) -> None:
    said = Speaker(with_words(models("qwen3"), tmp_path / "x", starts=True))
    whole = said.written([VARIED], most=12)[0]
    words = whole.split()
    assert words.index(words[3]) == 3
    assert said.written([VARIED], most=12, until=["nothing", words[3]])[0] == " ".join(words[:3]) + " "
    assert said.written([VARIED], most=12, until=["nothing", ""])[0] == whole
    assert len(said.written([VARIED], most=3)[0].split()) == 3
    assert said.written([VARIED], most=12, until=[words[4], words[3]]) == said.written([VARIED], most=12, until=[words[3], words[4]])


@pytest.mark.parametrize("where", ["config.json", "generation_config.json", "tokenizer"])
def test_the_end_of_the_text_ends_it(models: Models, tmp_path: Path, where: str) -> None:
    best = slow.written(of_transformers(models("qwen3")), VARIED, 12, set())
    end, before = best[4], best[:4]
    assert end not in before
    folder = with_words(models("qwen3"), tmp_path / "x", starts=True).folder
    if where == "tokenizer":
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": f"w{end}"}))
    else:
        held = json.loads((folder / where).read_text()) if (folder / where).exists() else {}
        (folder / where).write_text(json.dumps({**held, "eos_token_id": [end, 2]}))
        if where == "config.json":
            (folder / "generation_config.json").unlink(missing_ok=True)
    both = Speaker(open_checkpoint(folder)).written([VARIED, VARIED[1:]], most=12)
    assert both[0].split() == [f"w{token}" for token in before]
    assert len(both[1].split()) > 4  # the other one goes on


def test_a_prompt_that_is_too_long_loses_its_beginning(models: Models, reader: Checkpoint) -> None:
    said, prompt = Speaker(reader), tokens(1, 90, seed=9)[0].tolist()
    wanted = slow.written(of_transformers(models("llama")), prompt[-(ROOM - 6) :], 6, {2})
    assert said.written([prompt], most=6) == [said.tokenizer.decode(wanted)]
    with pytest.raises(Refused, match="write 64 tokens: a model that sees 64 at once"):
        said.written([prompt], most=64)


RECIPES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "rtn", {"bits": 3, "block": 16}), ("gpt2", "rtn", {"bits": 3, "symmetric": False}), ("qwen2", "nf4", {}),
    ("gemma2", "rtn", {"bits": 2, "block": 16}),
]


@pytest.mark.parametrize(("kind", "name", "options"), RECIPES)
def test_what_is_scored_is_what_the_folder_holds(models: Models, tmp_path: Path, kind: str, name: str, options: dict[str, Any]) -> None:
    """Rounded tables and heads too, tied or not, in layouts that transformers does not read."""
    source = with_words(models(kind), tmp_path / "x", starts=False)
    names = ("op:Linear", "op:Embedding") if source.tied else ("op:Linear", "op:Embedding", "op:Head")
    made = apply(source, Recipe((Step(name, names, (), FrozenMap(options)),)), target=HOST, out=tmp_path / "out")
    assert isinstance(made, Checkpoint)
    wanted = [slow.likelihood(with_weights_of(made, source.folder), *each, ROOM)[0] for each in questions()[:4]]
    assert [nats for nats, _ in Speaker(made).likelihoods(questions()[:4])] == pytest.approx(wanted, abs=2e-4)


def test_inputs_are_rounded_where_the_folder_says_so(models: Models, tmp_path: Path) -> None:
    """As block by block: what a layer reads is int8 by token, and differs from what floats give."""
    source = with_words(models("llama"), tmp_path / "x", starts=False)
    row = tokens(1, 12, seed=3)
    found = []
    for activations in (8, 0):
        options: FrozenMap[Any] = FrozenMap({"bits": 8, "activations": activations})
        made = apply(source, Recipe((Step("rtn", ("*",), (), options),)), target=HOST, out=tmp_path / f"{activations}")
        assert isinstance(made, Checkpoint)
        found.append(Speaker(made).likelihoods([(row[0, :-1].tolist(), row[0, -1:].tolist())])[0][0])
        with torch.no_grad():
            logits = streamed(Skeleton(made), row)[0, -2].double()
        assert found[-1] == pytest.approx(float(logits.log_softmax(-1)[row[0, -1]]), abs=1e-4)
    assert abs(found[0] - found[1]) > 3e-4


def test_a_start_is_needed_for_texts_without_context(models: Models, tmp_path: Path) -> None:
    checkpoint = with_words(models("llama"), tmp_path / "x", starts=False)
    assert Speaker(checkpoint).start == 1
    path = checkpoint.folder / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}))
    assert Speaker(checkpoint).start == 2
    path.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}))
    with pytest.raises(Refused, match="without a token for the beginning or the end"):
        Speaker(checkpoint).rolling([[5, 6]], length=8)


def test_special_tokens_stand_once(models: Models, reader: Checkpoint) -> None:
    said = Speaker(reader)
    assert said.encode("w5 w6") == said.encode("<s> w5 w6") == [1, 5, 6]
    assert said.encode("w5 w6", special=False) == [5, 6]


def test_encoders_and_models_without_tokenizer(models: Models, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="predicts no next token"):
        Speaker(open_checkpoint(models("bert")))
    with pytest.raises(Refused, match="no tokenizer"):
        Speaker(open_checkpoint(changed_copy(models("llama"), tmp_path / "x")))


def test_answers_that_are_no_numbers_are_refused(models: Models, tmp_path: Path) -> None:
    weight = open_checkpoint(models("llama")).tensor("model.norm.weight").clone()
    weight[3] = float("nan")
    folder = changed_copy(models("llama"), tmp_path / "x", tensors={"model.norm.weight": weight})
    with pytest.raises(Refused, match="score the candidate: answers that are no numbers"):
        Speaker(with_words(folder, tmp_path / "y", starts=True), "candidate").likelihoods([([5], [6])])


def test_progress_counts_what_is_asked(reader: Checkpoint) -> None:
    told: list[tuple[str, int | None]] = []
    steps: list[int] = []

    class Heard:
        def start(self, name: str, total: int | None) -> int:
            told.append((name, total))
            return 0

        def advance(self, task: int, steps_done: int, note: str) -> None:
            steps.append(steps_done)

        def stop(self, task: int) -> None:
            pass

    with reporting(Heard()), torch.no_grad():
        said = Speaker(reader, "candidate")
        said.likelihoods(questions())
        said.written([[5, 6], [7]], most=2)
    assert told == [("candidate: likelihoods", 8), ("candidate: writing", 2)]
    assert sum(steps) == 10
