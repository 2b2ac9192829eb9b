"""Text becomes windows of tokens, all of it once, and what is no text is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.conftest import Models
from tests.checkpoint.made_up_models import ROWS, changed_copy, tokens

from whet.compress.checkpoint import Checkpoint, open_checkpoint
from whet.compress.checkpoint.text import FEWEST_TOKENS, LONGEST_WINDOW, Windows, texts_in, tokenizer_of, windows_of
from whet.core.errors import Refused

pytestmark = pytest.mark.usefixtures("one_torch_thread")
START = 1


def words(first: int, count: int) -> str:
    """Text of so many tokens: word "w7" is token 7."""
    return " ".join(f"w{3 + (first + at) % (ROWS - 3)}" for at in range(count))


def ids(first: int, count: int) -> list[int]:
    return [3 + (first + at) % (ROWS - 3) for at in range(count)]


@pytest.fixture(params=[True, False], ids=["start", "no start"])
def reader(request: pytest.FixtureRequest, models: Models, tmp_path: Path) -> Checkpoint:
    return with_words(models("llama"), tmp_path / "model", starts=request.param)


def with_words(source: Path, folder: Path, *, starts: bool) -> Checkpoint:
    """A copy with a tokenizer of words, which puts <s> before a text or does not."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    changed_copy(source, folder)
    content = {"<unk>": 0, "<s>": START, "</s>": 2, **{f"w{at}": at for at in range(3, ROWS)}}
    tokenizer = Tokenizer(models.WordLevel(content, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if starts:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return open_checkpoint(folder)


def bodies(found: Windows) -> list[int]:
    """All tokens but the marks for the beginning."""
    return [int(token) for window in found.tokens for token in window[1 if found.starts else 0 :]]


def test_windows_follow_each_other_and_each_begins_with_the_mark(reader: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 200))
    found = windows_of(reader, tmp_path / "a.txt")
    assert found.length == 64  # all that the model was made for
    own = 63 if found.starts else 64
    assert bodies(found) == ids(0, 200 // own * own)
    assert found.tokens.dtype == torch.int64
    assert found.starts == bool((found.tokens[:, 0] == START).all())
    assert found.source == str(tmp_path / "a.txt")
    assert found.tokens.shape == (len(found), found.length)


def test_the_length_can_be_chosen(reader: Checkpoint) -> None:
    assert windows_of(reader, [words(0, 150)], length=16).length == 16
    assert windows_of(reader, [words(0, 150)], length=5000).length == 64
    assert LONGEST_WINDOW == 2048


def test_few_windows_are_spread_over_the_text(reader: Checkpoint) -> None:
    every = windows_of(reader, [words(0, 700)], length=16)
    some = windows_of(reader, [words(0, 700)], length=16, most=3)
    assert len(some) == 3
    assert torch.equal(some.tokens[0], every.tokens[0])
    assert torch.equal(some.tokens[-1], every.tokens[-1])
    assert any(torch.equal(some.tokens[1], window) for window in every.tokens[len(every) // 3 : -len(every) // 3])
    assert torch.equal(windows_of(reader, [words(0, 700)], length=16, most=10_000).tokens, every.tokens)


def test_lines_of_jsonl_are_texts_of_their_own(reader: Checkpoint, tmp_path: Path) -> None:
    lines = [json.dumps({"text": words(0, 70), "more": 3}), "", json.dumps(words(10, 80))]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = windows_of(reader, tmp_path / "a.jsonl", length=8)
    mark = [START] if found.starts else []
    joined = [*ids(0, 70), *mark, *ids(10, 80)]
    assert bodies(found) == joined[: len(bodies(found))]
    assert len(joined) - len(bodies(found)) < 8
    assert torch.equal(found.tokens, windows_of(reader, [words(0, 70), words(10, 80)], length=8).tokens)


def test_tokens_are_taken_as_they_are(reader: Checkpoint, tmp_path: Path) -> None:
    given = tokens(4, 10)
    np.save(tmp_path / "a.npy", given.numpy().astype(np.uint16))
    for source in (tmp_path / "a.npy", given, given.numpy(), given.int()):
        found = windows_of(reader, source)
        assert torch.equal(found.tokens, given)
        assert found.tokens.dtype == torch.int64
        assert not found.starts
    windows = Windows(given, False, "")
    assert windows_of(reader, windows) is windows
    for source in (windows, given):
        assert torch.equal(windows_of(reader, source, most=2).tokens, given[[0, -1]])


def test_a_short_text_is_one_window(models: Models, tmp_path: Path) -> None:
    for starts in (True, False):
        folder = changed_copy(models("llama"), tmp_path / f"{starts}", config={"max_position_embeddings": 4096})
        reader = with_words(folder, tmp_path / f"{starts} words", starts=starts)
        found = windows_of(reader, [words(0, 150)])
        assert found.tokens.tolist() == [([START] if starts else []) + ids(0, 150)]


@pytest.mark.parametrize("count", [0, 10, FEWEST_TOKENS - 1])
def test_a_text_of_ten_tokens_is_refused(reader: Checkpoint, tmp_path: Path, count: int) -> None:
    (tmp_path / "a.txt").write_text(words(0, count))
    with pytest.raises(Refused, match=rf"a\.txt.*{count} tokens.*at least {FEWEST_TOKENS}"):
        windows_of(reader, tmp_path / "a.txt")


def test_no_tokenizer(models: Models, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(0, 200))
    with pytest.raises(Refused, match=r"no tokenizer in it.*tokenizer\.json there from the original model"):
        windows_of(open_checkpoint(models("llama")), tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "what"}}'])
def test_a_broken_tokenizer(models: Models, tmp_path: Path, text: str) -> None:
    folder = changed_copy(models("llama"), tmp_path / "x")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(Refused, match=r"read text with .*tokenizer"):
        tokenizer_of(open_checkpoint(folder))


@pytest.mark.parametrize(("line", "word"), [("{", "no JSON"), ('{"words": "a"}', 'without "text"'), ('{"text": 3}', 'without "text"'),
                                            ("3", 'without "text"')])
def test_a_line_without_text(tmp_path: Path, line: str, word: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'"right"\n{line}\n')
    with pytest.raises(Refused, match=word):
        texts_in(tmp_path / "a.jsonl")


def test_no_such_file_and_no_such_thing(reader: Checkpoint, tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.npy"):
        with pytest.raises(Refused, match="there is no such file"):
            windows_of(reader, tmp_path / name)
    with pytest.raises(Refused, match="an array of object"):
        windows_of(reader, np.array([["a", None]], object))
    with pytest.raises(Refused, match="from a int"):
        windows_of(reader, 3)


@pytest.mark.parametrize(("given", "word"), [
    (torch.ones(3, 4), "float32"), (tokens(2, 8)[0], r"\[8\]"), (tokens(2, 8)[:0], r"\[0, 8\]"),
    (tokens(2, 8) + ROWS, "the model knows 96"),
    (-tokens(2, 8), "the model knows 96"), (tokens(2, 1), r"\[2, 1\]"), (tokens(2, 65), "65 tokens.*64"),
    (torch.ones(2, 8, dtype=torch.bool), "bool"),
])
def test_tokens_that_are_none_of_the_model(reader: Checkpoint, given: torch.Tensor, word: str) -> None:
    with pytest.raises(Refused, match=word):
        windows_of(reader, given)


@pytest.mark.parametrize("content", [b"", b"what", b"\x93NUMPY\x01\x00", np.array([{"a": 1}], object)])
def test_a_broken_array_file(reader: Checkpoint, tmp_path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        (tmp_path / "a.npy").write_bytes(content)
    else:
        np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(Refused, match=r"a\.npy"):
        windows_of(reader, tmp_path / "a.npy")


def test_an_encoder_reads_windows_with_all_marks_of_its_tokenizer(models: Models, tmp_path: Path) -> None:
    """[CLS] before and [SEP] behind each window, and [SEP] alone between texts."""
    from tokenizers import Tokenizer, processors

    with_words(models("bert"), tmp_path / "bert", starts=False)
    tokenizer = Tokenizer.from_file(str(tmp_path / "bert/tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", 2)])
    tokenizer.save(str(tmp_path / "bert/tokenizer.json"))
    found = windows_of(open_checkpoint(tmp_path / "bert"), [words(0, 70), words(10, 80)], length=8)
    joined = [*ids(0, 70), 2, *ids(10, 80)]
    assert found.tokens.shape == (len(joined) // 6, 8)
    assert set(found.tokens[:, 0].tolist()) == {START}
    assert set(found.tokens[:, -1].tolist()) == {2}
    assert found.tokens[:, 1:-1].flatten().tolist() == joined[: 6 * len(found)]
    short = windows_of(open_checkpoint(tmp_path / "bert"), [words(0, 200)])  # the model was made for 64 tokens
    assert short.tokens.shape == (200 // 62, 64)


def test_the_real_tokenizer_begins_each_window(assets: Path) -> None:
    """stories260K: the marks that its tokenizer.json puts before a text; the words come back from the tokens."""
    model = open_checkpoint(assets / "stories260K")
    found = windows_of(model, assets / "stories260K" / "tinystories_val.txt", most=4)
    assert found.starts
    assert found.tokens[:, 0].tolist() == [1] * 4
    text = (assets / "stories260K" / "tinystories_val.txt").read_text()
    told = tokenizer_of(model).decode(found.tokens[0][1:60], skip_special_tokens=True)
    assert " ".join(text.split()).startswith(" ".join(told.split())[:100])
