"""Running language models on the device: the cache stays where it is, letters stay whole, and every ending is told."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tests.compress.rounded_checkpoints import random_checkpoint

from whet.compress.checkpoint import open_checkpoint
from whet.compress.checkpoint.onnx_export import export_onnx
from whet.core.errors import Refused, Unsupported
from whet.device.language import Generation, generate
from whet.device.language import decoder as decoders
from whet.device.language.decoder import OnnxDecoder
from whet.device.language.folder import open_folder
from whet.device.language.sampling import Sampling, chosen
from whet.device.language.texts import Pieces, open_tokenizer, tokens_of

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def stories(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K as ONNX."""
    source = assets / "stories260K"
    if not source.is_dir():
        pytest.skip("no stories260K")
    folder = tmp_path_factory.mktemp("stories") / "onnx"
    export_onnx(open_checkpoint(source), folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that reads position_ids."""
    folder = tmp_path_factory.mktemp("gpt2")
    export_onnx(open_checkpoint(random_checkpoint(folder / "plain", "gpt2")), folder / "onnx")
    return folder / "onnx"


@pytest.fixture
def copy(stories: Path, tmp_path: Path) -> Path:
    """stories260K as ONNX, to be changed."""
    return Path(shutil.copytree(stories, tmp_path / "copy"))


def changed(folder: Path, **model: Any) -> Path:
    path = folder / "genai_config.json"
    told = json.loads(path.read_text())
    told["model"].update(model)
    path.write_text(json.dumps(told))
    return folder


def opened(folder: Path, capacity: int = 64) -> OnnxDecoder:
    return OnnxDecoder(open_folder(folder), capacity=capacity, threads=1)


def without_cache(folder: Path, tokens: list[int]) -> Any:
    """[tokens, vocabulary] from one run over all of them."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    feeds: dict[str, Any] = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    for value in session.get_inputs():
        if value.name == "position_ids":
            feeds["position_ids"] = np.arange(len(tokens))[None]
        elif value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return session.run(["logits"], feeds)[0][0]


# -- the decoder ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["stories", "gpt2"])
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 4, 1, 1]])
def test_reading_in_parts_gives_the_logits_of_the_whole(which: str, chunks: list[int], request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    tokens = list(range(3, 15))
    right, model, begin = without_cache(folder, tokens), opened(folder), 0
    for count in chunks:
        found = model.read(tokens[begin : begin + count])
        begin += count
        np.testing.assert_allclose(found, right[begin - 1], atol=1e-4)


def test_a_long_prompt_goes_in_by_parts(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = list(range(3, 33))
    right = without_cache(stories, tokens)[-1]
    monkeypatch.setattr(decoders, "CHUNK", 7)
    model = opened(stories)
    np.testing.assert_allclose(model.read(tokens), right, atol=1e-4)
    assert model.length == 30


def test_new_keys_and_values_are_written_behind_the_old_ones_in_place(stories: Path) -> None:
    model = opened(stories, capacity=8)
    model.read([5, 6, 7])
    before = [buffer.copy() for buffer in model._cache]
    assert all(buffer[:, :, :3].any() and not buffer[:, :, 3:].any() for buffer in before)
    model.read([8])
    for old, buffer in zip(before, model._cache, strict=True):
        np.testing.assert_array_equal(buffer[:, :, :3], old[:, :, :3])
        assert buffer[:, :, 3].any()
        assert not buffer[:, :, 4:].any()


def test_more_than_there_is_room_for_is_refused(stories: Path) -> None:
    model = opened(stories, capacity=4)
    model.read([5, 6, 7])
    with pytest.raises(Refused, match="room for 1 more"):
        model.read([8, 9])
    with pytest.raises(Refused):
        model.read([])


@pytest.mark.parametrize(
    ("others", "threads", "expected"),
    [(0.0, None, "awake"), (0.6, None, "asleep"), (0.4, 2, "awake"), (0.6, 2, "asleep"), (1.4, 1, "awake"), (1.6, 1, "asleep"),
     (None, 2, "awake")],
)
def test_threads_wait_awake_where_their_cores_are_free(monkeypatch: pytest.MonkeyPatch, others: float | None, threads: int | None,
                                                       expected: str) -> None:
    monkeypatch.setattr(decoders, "others_running", lambda: others)
    monkeypatch.setattr(decoders, "usable_cores", lambda: 2)
    assert decoders.waiting("auto", threads) == expected
    assert [decoders.waiting(way, threads) for way in ("awake", "asleep")] == ["awake", "asleep"]
    with pytest.raises(Refused, match="auto, awake or asleep"):
        decoders.waiting("standing")


@pytest.mark.parametrize("way", ["awake", "asleep"])
def test_the_session_waits_as_was_asked(stories: Path, way: str) -> None:
    found = OnnxDecoder(open_folder(stories), capacity=8, threads=2, wait=way)
    entry = found._session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
    assert (found.wait, entry) == (way, {"awake": "1", "asleep": "0"}[way])


# -- generate -------------------------------------------------------------------------------------------------------------------


def test_a_story_goes_on_as_the_likeliest_tokens_say(stories: Path) -> None:
    tokenizer = open_tokenizer(stories)
    tokens = tokens_of(tokenizer, PROMPT, begin=1, folder=stories)
    given = len(tokens)
    for _ in range(24):
        tokens.append(int(without_cache(stories, tokens)[-1].argmax()))
    text = "".join(generate(stories, PROMPT, max_tokens=24, threads=1))
    assert PROMPT + text == tokenizer.decode(tokens)
    assert text.startswith(", there was a little girl named")
    assert given == 5


def test_how_it_went(stories: Path) -> None:
    writing = generate(stories, PROMPT, max_tokens=20, threads=1)
    assert writing.generation.tokens == 0
    text = "".join(writing)
    told = writing.generation
    assert (told.prompt_tokens, told.tokens, told.ended) == (5, 20, "length")
    assert told.decode_tokens_per_s
    assert told.prompt_tokens_per_s
    assert told.peak_rss_bytes is None or told.peak_rss_bytes > 20e6
    assert text
    assert Generation.from_plain(told.to_plain()) == told


def test_one_seed_one_text(stories: Path) -> None:
    def text(seed: int, **options: Any) -> str:
        return "".join(generate(stories, PROMPT, max_tokens=30, temperature=1.0, seed=seed, threads=1, **options))

    assert text(1) == text(1) != text(2)
    assert text(1, top_k=1) == text(2, top_k=1) == "".join(generate(stories, PROMPT, max_tokens=30, threads=1))


def test_the_model_ends_the_text(copy: Path) -> None:
    tokens = tokens_of(open_tokenizer(copy), PROMPT, begin=1, folder=copy)
    first = int(without_cache(copy, tokens)[-1].argmax())
    second = int(without_cache(copy, [*tokens, first])[-1].argmax())
    for ends in (second, [9, second]):
        writing = generate(changed(copy, eos_token_id=ends), PROMPT, max_tokens=20, threads=1)
        "".join(writing)
        assert (writing.generation.tokens, writing.generation.ended) == (2, "end")


def test_the_model_holds_no_more(copy: Path) -> None:
    writing = generate(changed(copy, context_length=8), PROMPT, max_tokens=20, threads=1)
    "".join(writing)
    assert (writing.generation.tokens, writing.generation.ended) == (4, "context")  # the fourth need not be read any more
    with pytest.raises(Refused, match="5 tokens, and the model holds 5"):
        generate(changed(copy, context_length=5), PROMPT, threads=1)


def test_a_beginning_is_put_in_front_where_the_tokenizer_leaves_it_out(copy: Path) -> None:
    told = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**told, "post_processor": None}))
    tokenizer = open_tokenizer(copy)
    assert tokens_of(tokenizer, PROMPT, begin=1, folder=copy)[:2] == [1, 403]
    (copy / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert tokens_of(tokenizer, PROMPT, begin=1, folder=copy)[0] == 403
    with pytest.raises(Refused, match="at least 1"):
        generate(copy, PROMPT, max_tokens=0)
    writing = generate(copy, "", max_tokens=2, threads=1)
    "".join(writing)
    assert writing.generation.prompt_tokens == 1
    with pytest.raises(Refused, match="empty prompt"):
        generate(changed(copy, bos_token_id=None), "", max_tokens=2, threads=1)


# -- sampling -------------------------------------------------------------------------------------------------------------------


def slow_shares(logits: Any, temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """The probability of each token, by the definitions."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: top_k or None]
    weights = [np.exp(logits[token] / temperature) for token in order]
    kept, total = {}, 0.0
    for token, weight in zip(order, weights, strict=True):
        kept[token] = weight
        total += weight / sum(weights)
        if total >= top_p:
            break
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 3, 1.0), (2.0, 0, 0.7), (1.0, 4, 0.6)])
def test_tokens_are_drawn_as_often_as_they_should(temperature: float, top_k: int, top_p: float) -> None:
    logits = np.array([0.3, 2.0, -1.0, 1.0, 0.0, 1.5], np.float32)
    generator, count = np.random.default_rng(0), 4000
    drawn = Counter(chosen(logits, Sampling(temperature, top_k, top_p), generator) for _ in range(count))
    right = slow_shares(logits, temperature, top_k, top_p)
    assert set(drawn) == set(right)
    for token, share in right.items():
        assert abs(drawn[token] / count - share) < 0.03


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_wrong_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        Sampling(**wrong)


# -- pieces ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bytes_alone() -> Any:
    """A tokenizer that has a token for each byte and no other."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    return made


def pieces(tokenizer: Any, prompt: str, text: str) -> Iterator[str]:
    given = tokenizer.encode(prompt).ids
    wanted = tokenizer.encode(prompt + text).ids[len(given) :]
    whole = Pieces(tokenizer, given)
    for index, token in enumerate(wanted):
        yield whole.next(token, last=index + 1 == len(wanted))


def test_pieces_are_whole_letters(bytes_alone: Any) -> None:
    found = list(pieces(bytes_alone, "é", "aé🙂 漢字 b"))
    assert "".join(found) == "aé🙂 漢字 b"
    assert [piece for piece in found if piece] == list("aé🙂 漢字 b")


def test_bytes_that_are_no_letter_do_not_wait_for_ever(bytes_alone: Any) -> None:
    tokens = bytes_alone.encode("🙂").ids
    whole = Pieces(bytes_alone, [])
    assert [whole.next(token) for token in tokens[:3]] == ["", "", ""]
    assert set(whole.next(tokens[0], last=True)) == {"\ufffd"}
    whole = Pieces(bytes_alone, [])
    assert "".join(whole.next(tokens[1]) for _ in range(20))


def test_spaces_between_pieces_are_those_of_the_text(stories: Path) -> None:
    text = " there was a little girl. She said, \"Hi!\"\nThe end"
    tokenizer = open_tokenizer(stories)
    given = tokenizer.encode("Once").ids
    whole, tokens = Pieces(tokenizer, given), tokenizer.encode("Once" + text).ids[len(given) :]
    assert "".join(whole.next(token) for token in tokens) == text


# -- refusals -------------------------------------------------------------------------------------------------------------------


def test_what_is_no_exported_model_is_refused(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(Refused, match=r"no genai_config\.json in it"):
        generate(tmp_path, PROMPT)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refused, match="a checkpoint"):
        generate(tmp_path, PROMPT)
    for text in ("{", "[]", "{}", '{"model": {"decoder": {}}}'):
        (copy / "genai_config.json").write_text(text)
        with pytest.raises(Refused, match="cannot be read"):
            generate(copy, PROMPT)


def test_a_missing_or_broken_tokenizer_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(Refused, match="pip install tokenizers"):
            generate(copy, PROMPT)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(Refused, match="download the tokenizer again"):
        generate(copy, PROMPT)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(Refused, match=r"no tokenizer\.json"):
        generate(copy, PROMPT)


def test_a_graph_that_is_not_as_the_config_says_is_unsupported(copy: Path) -> None:
    decoder = json.loads((copy / "genai_config.json").read_text())["model"]["decoder"]
    with pytest.raises(Unsupported, match=r"past_key_values\.4\.key"):
        generate(changed(copy, decoder={**decoder, "num_hidden_layers": 4}), PROMPT)
    (copy / "model.onnx").write_bytes(b"no model")
    with pytest.raises(Unsupported):
        generate(copy, PROMPT)


# -- GGUF -----------------------------------------------------------------------------------------------------------------------


def test_gguf_without_llama_cpp_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "a.gguf"):
        with pytest.raises(Refused, match="pip install llama-cpp-python"):
            generate(path, PROMPT)
    with pytest.raises(Refused, match="no such file"):
        generate(tmp_path / "b.gguf", PROMPT)
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(Refused, match=r"2 \.gguf files"):
        generate(tmp_path, PROMPT)


def test_gguf_with_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Llama:
        """As much of llama_cpp.Llama as is used."""

        def __init__(self, path: str, **options: Any) -> None:
            asked.update(options, path=path)
            if "broken" in path:
                raise ValueError("Failed to load model from file")

        def tokenize(self, text: bytes, *, special: bool) -> list[int]:
            return [1, *text]

        def create_completion(self, tokens: list[int], **options: Any) -> Iterator[Any]:
            asked.update(options, tokens=tokens)
            for text, why in ((" a", None), ("", None), (" b", None), ("", "length")):
                yield {"choices": [{"text": text, "finish_reason": why}]}

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    writing = generate(tmp_path, "xy", max_tokens=3, temperature=0.5, top_k=7, top_p=0.8, seed=4, threads=2)
    assert list(writing) == [" a", " b"]
    told = writing.generation
    assert (told.prompt_tokens, told.tokens, told.ended) == (3, 3, "length")
    named = ("path", "n_threads", "seed", "max_tokens", "temperature", "top_k", "top_p", "tokens")
    assert [asked[name] for name in named] == [str(tmp_path / "a.gguf"), 2, 4, 3, 0.5, 7, 0.8, [1, 120, 121]]
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unsupported, match="Failed to load"):
        generate(tmp_path / "broken.gguf", "xy")
