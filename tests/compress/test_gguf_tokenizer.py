"""Tokenizers as GGUF says them: text is cut by scores as it is by merges, and what llama.cpp cannot cut is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from tests.compress.gguf_checkpoints import LLAMA3, QWEN, ROWS, TEKKEN, TEXT, byte_level, pieces, save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from whet.compress.checkpoint.gguf.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, vocabulary_of
from whet.core.errors import Refused, Unsupported


def cut_by_scores(vocabulary: Vocabulary, text: str) -> list[int]:
    """What llama.cpp's llm_tokenizer_spm does, slowly: join the two neighbours whose union scores highest, the leftmost of equal ones."""
    if not text:
        return []
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    parts = list((" " + text if vocabulary.space_first else text).replace(" ", "▁"))
    while True:
        pairs = [(vocabulary.scores[ids[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]
        if not pairs:
            break
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    found: list[int] = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


def test_stories_are_cut_by_scores_as_by_merges(assets: Path) -> None:
    folder = assets / "stories260K"
    vocabulary = vocabulary_of(folder, 512)
    assert (vocabulary.model, vocabulary.space_first, len(vocabulary.tokens)) == ("llama", True, 512)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*(folder / "tinystories_val.txt").read_text()[:2000].splitlines(), " Ünïcode  and\ttabs \n"):
        assert cut_by_scores(vocabulary, text) == tokenizer.encode(text, add_special_tokens=False).ids
    assert vocabulary.types[:4] == (UNKNOWN, CONTROL, CONTROL, BYTE)
    assert set(vocabulary.types[259:]) == {NORMAL}


@pytest.mark.parametrize("first", ["▁", ""])
def test_pieces(tmp_path: Path, first: str) -> None:
    tokenizer = pieces(first)
    tokenizer.add_tokens(["<tool>"])
    save_tokenizer(tmp_path, tokenizer)
    vocabulary = vocabulary_of(tmp_path, ROWS)
    assert vocabulary.space_first == bool(first)
    assert cut_by_scores(vocabulary, TEXT) == tokenizer.encode(TEXT, add_special_tokens=False).ids
    count = tokenizer.get_vocab_size()
    assert vocabulary.types[count - 2 :] == (NORMAL, USER_DEFINED, *[UNUSED] * (ROWS - count))
    assert vocabulary.tokens[count] == f"[PAD{count}]"


def test_metaspace_puts_the_space(tmp_path: Path) -> None:
    tokenizer = pieces("")
    tokenizer.normalizer = None
    for scheme, wanted in (("first", True), ("never", False)):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        save_tokenizer(tmp_path, tokenizer)
        assert vocabulary_of(tmp_path, ROWS).space_first == wanted


@pytest.mark.parametrize(("pattern", "digits", "name"), [(None, False, "gpt-2"), (None, True, "smollm"), (QWEN, False, "qwen2"),
                                                         (LLAMA3, False, "llama-bpe"), (TEKKEN, False, "tekken")])
def test_ways_of_cutting_have_their_names(tmp_path: Path, pattern: str | None, digits: bool, name: str) -> None:
    save_tokenizer(tmp_path, byte_level(pattern, digits=digits))
    vocabulary = vocabulary_of(tmp_path, ROWS)
    assert (vocabulary.model, vocabulary.pre, vocabulary.scores, vocabulary.space_first) == ("gpt2", name, (), None)
    assert vocabulary.types[:4] == (CONTROL, CONTROL, CONTROL, NORMAL)
    assert vocabulary.types[vocabulary.tokens.index("<tool>")] == USER_DEFINED


def test_merges_are_written(tmp_path: Path) -> None:
    import gguf

    save_tokenizer(tmp_path, byte_level(QWEN))
    writer = gguf.GGUFWriter(None, "qwen2")
    vocabulary_of(tmp_path, ROWS).add_to(writer, tmp_path)
    said = {name: value.value for name, value in writer.kv_data[0].items()}
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert said["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]
    assert (said["tokenizer.ggml.bos_token_id"], said["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert said["tokenizer.ggml.add_bos_token"] is False


def test_what_llama_cpp_cannot_cut(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, byte_level(r"\w+"))
    with pytest.raises(Unsupported, match=r"cuts text by \\w\+ and bytes"):
        vocabulary_of(tmp_path, ROWS)
    tokenizer = byte_level(None)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    save_tokenizer(tmp_path, tokenizer)
    with pytest.raises(Unsupported, match="cuts text by ByteLevel"):
        vocabulary_of(tmp_path, ROWS)
    save_tokenizer(tmp_path, Tokenizer(models.WordPiece({"a": 0})))
    with pytest.raises(Unsupported, match='of the type "WordPiece"'):
        vocabulary_of(tmp_path, ROWS)


@pytest.mark.parametrize(("content", "found"), [
    ("{", "that is no JSON"), ("[]", "without a vocabulary"), ('{"model": {}}', "without a vocabulary")])
def test_broken_files(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(Refused, match=found):
        vocabulary_of(tmp_path, ROWS)
