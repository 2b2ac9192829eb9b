"""A tokenizer.json as a GGUF file says it, so that llama.cpp cuts text as transformers does.

Two kinds are known. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM: model "gpt2") keeps its merges, and llama.cpp has a built-in way of
cutting text into words for each family, by name ("pre"). BPE that falls back to bytes, as converted from sentencepiece (Llama 2, Mistral,
Gemma, Phi-3: model "llama"), has scores in place of merges: of two neighbours those are joined first whose union has the highest score,
which is the order of the merges where all ways of making a token stand together in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.compress.checkpoint.gguf.package import gguf_package
from whet.core.errors import Refused, Unsupported

TOKENIZER_NAME = "tokenizer.json"
# gguf.TokenType.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
           r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# How a pre-tokenizer cuts text, to llama.cpp's name for it (src/llama-vocab.cpp).
_CUTS: Mapping[tuple[str, ...], str] = {
    ("words", "bytes"): "gpt-2",
    ("digits", "words", "bytes"): "smollm",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST, "bytes"): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}" + _REST, "bytes"): "qwen2",
    (_TEKKEN, "bytes"): "tekken",
}


@dataclass(frozen=True)
class Vocabulary:
    """tokens: by id, as many as the embedding has rows. types: of gguf.TokenType. scores: for the model "llama", else none.
    pre: how text is cut first. space_first: whether text gets a space before it, None where the model has no say in it.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    space_first: bool | None = None

    def add_to(self, writer: Any, folder: Path) -> None:
        """Put it into the writer, with merges, special tokens and chat template as the files of the folder say them."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        if self.scores:
            writer.add_token_scores(list(self.scores))
        if self.space_first is not None:
            writer.add_add_space_prefix(self.space_first)
        special = gguf_package().SpecialVocab(folder, load_merges=self.model == "gpt2", n_vocab=len(self.tokens))
        if self.model == "gpt2":
            special.add_special_token.setdefault("bos", False)  # for some ways of cutting llama.cpp would put one where nobody asked
        special.add_to_gguf(writer, quiet=True)


def vocabulary_of(folder: Path, rows: int) -> Vocabulary:
    """The tokenizer of a checkpoint whose embedding has so many rows.

    Raises Refused where there is none or it has more tokens than that, Unsupported where llama.cpp knows no such tokenizer.
    """
    content = _content(folder)
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise _unknown(folder, f'a tokenizer of the type "{model["type"]}"')
    by_id = {number: token for token, number in model["vocab"].items()}
    added = {each["id"]: each for each in content.get("added_tokens", ())}
    by_id |= {number: each["content"] for number, each in added.items()}
    if max(by_id) >= rows:
        raise Refused(f"export {folder} to GGUF", found=f"{max(by_id) + 1} tokens, and an embedding of {rows}",
                      do="use the tokenizer of this model")
    from_pieces = bool(model.get("byte_fallback"))
    kinds = tuple(_kind(by_id.get(number), added.get(number), model, from_pieces) for number in range(rows))
    tokens = tuple(by_id.get(number, f"[PAD{number}]") for number in range(rows))
    if from_pieces:
        return Vocabulary("llama", "default", tokens, kinds, _scores(tokens, model["merges"]), _space_first(content))
    return Vocabulary("gpt2", _cut(folder, content), tokens, kinds)


def _content(folder: Path) -> dict[str, Any]:
    asked = f"export {folder} to GGUF"
    try:
        content = json.loads((folder / TOKENIZER_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Refused(asked, found=f"no {TOKENIZER_NAME} in it",
                      do="save it with AutoTokenizer.from_pretrained(...).save_pretrained(...)") from error
    except ValueError as error:
        raise Refused(asked, found=f"a {TOKENIZER_NAME} that is no JSON", do="download it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict) or not content["model"].get("vocab"):
        raise Refused(asked, found=f"a {TOKENIZER_NAME} without a vocabulary", do="download it again")
    return content


def _unknown(folder: Path, found: str) -> Unsupported:
    return Unsupported(f"export {folder} to GGUF", found=f"{found}, which is none that llama.cpp has", do="export to onnx or hf")


def _kind(token: str | None, added: Mapping[str, Any] | None, model: Mapping[str, Any], from_pieces: bool) -> int:
    if token is None:
        return UNUSED
    if from_pieces and token == model.get("unk_token"):
        return UNKNOWN
    if added is not None:
        return CONTROL if added.get("special") else USER_DEFINED
    return BYTE if from_pieces and re.fullmatch(r"<0x[0-9A-F]{2}>", token) else NORMAL


def _scores(tokens: tuple[str, ...], merges: list[Any]) -> tuple[float, ...]:
    """Minus the place of the first merge that makes the token; what no merge makes comes after all that one does."""
    first: dict[str, int] = {}
    for place, merge in enumerate(merges):
        first.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), place)
    return tuple(-float(first.get(token, len(merges) + number)) for number, token in enumerate(tokens))


def _space_first(content: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text: by the normalizer in older files, by the pre-tokenizer in newer ones."""
    prepends = any(step.get("type") == "Prepend" for step in _steps(content.get("normalizer"), "normalizers"))
    cuts = _steps(content.get("pre_tokenizer"), "pretokenizers")
    return prepends or any(step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in cuts)


def _cut(folder: Path, content: Mapping[str, Any]) -> str:
    """llama.cpp's name for how the text is cut into words."""
    normal = [step.get("type") for step in _steps(content.get("normalizer"), "normalizers")]
    found: list[str] = []
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        found += _words(step)
    if tuple(found) not in _CUTS or set(normal) - {"NFC"}:  # llama.cpp leaves text unnormalised; text as people type it is NFC already
        raise _unknown(folder, f"a tokenizer that cuts text by {' and '.join(found) or 'nothing'}")
    return _CUTS[tuple(found)]


def _words(step: Mapping[str, Any]) -> list[str]:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return ["words", "bytes"] if step.get("use_regex", True) else ["bytes"]
    if kind == "Digits" and step.get("individual_digits"):
        return ["digits"]
    matches = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))  # and nothing else is cut
    if kind == "Split" and matches and "Regex" in step.get("pattern", {}):
        return [step["pattern"]["Regex"]]
    return [str(kind)]


def _steps(part: Mapping[str, Any] | None, inside: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, sequences laid open."""
    if part is not None and part.get("type") == "Sequence":
        for step in part.get(inside, ()):
            yield from _steps(step, inside)
    elif part is not None:
        yield part
