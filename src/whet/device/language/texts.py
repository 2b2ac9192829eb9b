"""Between texts and tokens: the model's own tokenizer, and pieces of text that are whole letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whet.core.errors import Refused
from whet.device.language.folder import TOKENIZER_CONFIG_NAME, TOKENIZER_NAME

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no letter yet


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in ``folder``. Raises Refused where it is missing or broken, or the package `tokenizers` is not installed."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise Refused("turn a text into tokens", found="the package tokenizers is not installed", do="pip install tokenizers") from error
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise Refused(f"run {folder} on a text", found=f"no {TOKENIZER_NAME} in it",
                      do="put the model's tokenizer into the checkpoint and export it again")  # fmt: skip
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no class of its own
        raise Refused(f"read {path}", found=str(error)[:200], do="download the tokenizer again") from error


def tokens_of(tokenizer: Tokenizer, text: str, *, begin: int | None, folder: Path) -> list[int]:
    """The tokens of a prompt; in front the one for a beginning, where tokenizer_config.json wants it and the tokenizer leaves it out."""
    found: list[int] = tokenizer.encode(text).ids
    return [begin, *found] if begin is not None and found[:1] != [begin] and _wants_begin(folder) else found


def _wants_begin(folder: Path) -> bool:
    path = folder / TOKENIZER_CONFIG_NAME
    try:
        return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("add_bos_token"))
    except (ValueError, AttributeError):
        return False


class Pieces:
    """Turns tokens into text as they come. A token may be half a letter, and its text may depend on the one before it (a space or none):
    a piece is what a few tokens' text has more than it had without the last ones, given out once it ends in a whole letter.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._known = list(prompt[-8:])  # enough for what follows to know what stands in front of it
        self._waiting: list[int] = []

    def next(self, token: int, *, last: bool = False) -> str:
        """The text that is certain now; "" where the letter is not whole. last: no token follows, so whatever there is."""
        self._waiting.append(token)
        before = self._tokenizer.decode(self._known, skip_special_tokens=True)
        now = self._tokenizer.decode(self._known + self._waiting, skip_special_tokens=True)
        if now.endswith(_BROKEN) and not last and len(self._waiting) < 8:
            return ""
        self._known, self._waiting = (self._known + self._waiting)[-16:], []
        return now[len(before) :]
