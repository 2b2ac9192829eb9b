"""Text as a language model reads it: tokens in windows of one length."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.skeleton import settings_of
from whet.core.errors import Refused

LONGEST_WINDOW = 2048  # what perplexities are quoted for, and where attention is still cheap on a CPU
FEWEST_TOKENS = 128


@dataclass(frozen=True, eq=False)
class Windows:
    """tokens: [n, length] int64. starts: whether each window begins with the token for the beginning of a text, which is not predicted.
    source: where the text came from, for reports.
    """

    tokens: Tensor
    starts: bool
    source: str

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def content_hash(self) -> str:
        """sha256 (hex) of the tokens."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()

    @property
    def length(self) -> int:
        return self.tokens.shape[1]


def windows_of(checkpoint: Checkpoint, source: Any, *, length: int | None = None, most: int | None = None) -> Windows:
    """Windows of a text, one after the other; what fills none is left out.

    source: a .txt file (one text), a .jsonl file (a text a line, as "text" or as the line itself), a .npy file or an array of tokens
    [n, length], texts, or Windows. length: of a window, default: what the model was made for, at most 2048. most: so many windows, spread
    over the whole text; default: all. Each window begins with the token for the beginning of a text, where the tokenizer puts one; an
    encoder's has all the marks that its tokenizer puts around a text.
    Raises Refused where there is no tokenizer or too little text.
    """
    if isinstance(source, Windows):
        return source if most is None or len(source) <= most else replace(source, tokens=_spread(source.tokens, most))
    longest = room_of(checkpoint)
    given = _tokens(source)
    if given is not None:
        return Windows(_spread(_checked(given, checkpoint, longest), most), False, _name(source))
    length = min(length or LONGEST_WINDOW, longest)
    tokenizer = tokenizer_of(checkpoint)
    first, last = _frame(tokenizer) if checkpoint.family.encoder else (_first(tokenizer), ())
    between, marks = last or first, len(first) + len(last)
    ids = [token for text in texts_in(source) for token in (*between, *tokenizer.encode(text, add_special_tokens=False, verbose=False))]
    ids = ids[len(between) :]  # the first window brings the marks of the first text
    step = min(length - marks, len(ids))
    if len(ids) < FEWEST_TOKENS:
        raise Refused(f"use the text {_name(source)}", found=f"{len(ids)} tokens", do=f"give at least {FEWEST_TOKENS}; 100,000 are usual")
    count = len(ids) // step
    cut = torch.tensor(ids[: count * step]).reshape(count, step)
    before, behind = (torch.tensor(each, dtype=torch.int64).expand(count, -1) for each in (first, last))
    whole = torch.cat([before, cut, behind], 1)
    return Windows(_spread(whole, most), bool(first), _name(source))


def room_of(checkpoint: Checkpoint) -> int:
    """How many tokens the model was made for at once. Raises Refused where config.json does not say it in a number."""
    said = checkpoint.config.get("max_position_embeddings", checkpoint.config.get("n_positions", LONGEST_WINDOW))
    if not isinstance(said, int) or said < 2:
        raise Refused(f"open {checkpoint.folder}", found=f"{said!r} for max_position_embeddings in its config.json",
                      do="use the config.json of these files")
    return said


def _spread(windows: Tensor, most: int | None) -> Tensor:
    """At most so many of them, from the first to the last."""
    if most is None or len(windows) <= most:
        return windows
    return windows[torch.linspace(0, len(windows) - 1, most).round().long()]


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """transformers' tokenizer of a checkpoint. Raises Refused where there is none, or a broken one."""
    from transformers import AutoTokenizer

    if not checkpoint.has_tokenizer:
        raise Refused(f"read text with {checkpoint.folder}", found="no tokenizer in it",
                      do="copy tokenizer.json there from the original model, or give tokens as a .npy file")
    settings_of(checkpoint)  # which the tokenizer reads too, and its errors are not the tokenizer's
    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder)
    except Exception as error:  # the tokenizers package raises plain Exception, transformers half a dozen kinds
        raise Refused(f"read text with {checkpoint.folder}", found=f"a broken tokenizer ({str(error)[:200]})",
                      do="copy its files there from the original model once more") from error


def special_tokens(checkpoint: Checkpoint) -> dict[str, Any]:
    """bos, eos and pad: generation_config.json knows them better than config.json (a chat model ends with several tokens)."""
    path = checkpoint.folder / "generation_config.json"
    try:
        better = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        better = {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: better[name] if better.get(name) is not None else checkpoint.config.get(name) for name in names}


def texts_in(source: Any) -> list[str]:
    """The texts of a file, or as they are."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise Refused(f"read the text {path}", found="there is no such file")
        text = path.read_text(encoding="utf-8", errors="replace")
        return [_line(line) for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else [text]
    if isinstance(source, Iterable):
        return [str(text) for text in source]
    raise Refused(f"read text from a {type(source).__name__}", do="give a .txt, .jsonl or .npy file, or a list of texts")


def _line(line: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise Refused("read the text", found=f"a line that is no JSON: {line[:60]}") from error
    if isinstance(found, dict) and isinstance(found.get("text"), str):
        return str(found["text"])
    if isinstance(found, str):
        return found
    raise Refused("read the text", found=f'a line without "text": {line[:60]}', do='write {"text": "..."} on each line')


def _tokens(source: Any) -> Tensor | None:
    """Tokens that were given as such."""
    if isinstance(source, str | os.PathLike):
        return _in_file(Path(source)) if Path(source).suffix == ".npy" else None
    try:
        return torch.as_tensor(source) if hasattr(source, "dtype") else None
    except TypeError as error:
        raise Refused("use tokens", found=f"an array of {source.dtype}", do="give whole numbers [n, length]") from error


def _in_file(path: Path) -> Tensor:
    if not path.is_file():
        raise Refused(f"read the tokens {path}", found="there is no such file")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, TypeError) as error:
        raise Refused(f"read the tokens {path}", found="no array of numbers in it", do="write it with numpy.save") from error


def _checked(tokens: Tensor, checkpoint: Checkpoint, longest: int) -> Tensor:
    rows = int(checkpoint.config["vocab_size"])
    whole = not tokens.is_floating_point() and not tokens.is_complex() and tokens.dtype != torch.bool
    if tokens.ndim != 2 or not whole or not len(tokens) or tokens.shape[1] < 2:
        raise Refused("use tokens", found=f"{tokens.dtype} {list(tokens.shape)}",
                      do="give whole numbers [n, length], at least two in each row")
    if tokens.shape[1] > longest:
        raise Refused("use tokens", found=f"windows of {tokens.shape[1]} tokens for a model made for {longest}", do="cut them")
    tokens = tokens.to(torch.int64)
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or most >= rows:
        raise Refused("use tokens", found=f"the token {least if least < 0 else most}, and the model knows {rows}",
                      do="use this model's tokenizer")
    return tokens


def _first(tokenizer: Any) -> Sequence[int]:
    """What the tokenizer puts before a text."""
    start = tokenizer.bos_token_id
    with_special = tokenizer.encode("a")
    return (start,) if start is not None and with_special[:1] == [start] else ()


def _frame(tokenizer: Any) -> tuple[Sequence[int], Sequence[int]]:
    """What the tokenizer puts before a text and behind it ([CLS] and [SEP])."""
    whole, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
    return ((), ()) if at is None else (whole[:at], whole[at + len(bare) :])


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else type(source).__name__
