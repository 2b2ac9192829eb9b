"""The rows of the benchmark of language models: Whet's techniques and its peers, by bits and group.

stories260K has 64 columns in all its layers but the last of each block, which has 172: groups of 128 differ from one scale a row there
alone, so few rows have them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from workers import Way

from whet.core.document import FrozenMap
from whet.core.recipe import Recipe, Step

Widths = tuple[tuple[int, int], ...]
TECHNIQUES = Path(__file__).resolve().parent.parent / "src" / "whet" / "compress" / "techniques"
# Bits and group (0: one scale a row) of the rows.
GROUPED = tuple((bits, 32) for bits in (4, 3, 2))
ROWS = tuple((bits, 0) for bits in (4, 3, 2))
SOME = ((4, 0), *GROUPED)
LEARN = {"batch": 2}  # windows of 512 tokens: as many tokens a step as the papers have in fewer, longer ones
QUICK = ("whet-rtn-?-g32", "whet-hqq-[43]-g32", "whet-gptq-?-g32", "whet-awq+gptq-3-g32", "whet-nf4-double", "hqq-[43]-g32",
         "bitsandbytes-nf4-double", "onnxruntime-4-g32", "llm-compressor-gptq-4-g32")


@dataclass(frozen=True)
class Row:
    """One way of rounding. way: how it is done. bits: a weight, on average. group: weights that share a scale, 0 for a row.

    slow: it learns, and takes as long as many others; it is given all of the calibration text.
    """

    name: str
    way: Way
    bits: float
    group: int
    slow: bool = False

    @property
    def own(self) -> bool:
        return self.name.startswith("whet-")

    @property
    def quick(self) -> bool:
        """Whether it is among the few of --quick."""
        return any(fnmatchcase(self.name, pattern) for pattern in QUICK)


def rows() -> list[Row]:
    """All of them, Whet's first, with names as whet-gptq-4-g32."""
    return [*whet_rows(), *peer_rows()]


def whet_rows() -> Iterator[Row]:
    asymmetric, moving = {"symmetric": False}, {"move": True}
    yield from _whet("rtn", ((8, 0), *ROWS, *GROUPED, (4, 128)), ("rtn", {}))
    yield from _whet("rtn-asym", GROUPED, ("rtn", asymmetric))
    yield from _whet("hqq", SOME, ("hqq", {}))
    yield from _whet("gptq", (*ROWS, *GROUPED, (4, 128)), ("gptq", {}))
    yield from _whet("gptq-asym", GROUPED, ("gptq", asymmetric))
    yield from _whet("awq", GROUPED, ("awq", {}))
    yield from _whet("awq+gptq", GROUPED, ("awq", asymmetric), ("gptq", asymmetric))
    yield from _whet("rotate+gptq", GROUPED, ("rotate", {}), ("gptq", asymmetric))
    yield from _whet("autoround", GROUPED[:2], ("autoround", LEARN), slow=True)
    yield from _whet("gptq+autoround", GROUPED, ("gptq", asymmetric), ("autoround", {**LEARN, **moving}), slow=True)
    if (TECHNIQUES / "tune.py").is_file():
        yield from _whet("gptq+tune-scales", ((2, 32),), ("gptq", asymmetric), ("tune", {}), slow=True)
        yield from _whet("gptq+tune", GROUPED, ("gptq", asymmetric), ("tune", {"codes": True}), slow=True)
        yield from _whet("gptq+tune-text", GROUPED[:2], ("gptq", asymmetric), ("tune", {"codes": True, "text": 0.03}), slow=True)
    for book in ("nf4", "fp4"):
        for double in (True, False):
            yield _row(f"whet-{book}{'-double' if double else ''}", 4, 64, [Step(book, options=FrozenMap({"double": double}))])
    mixed = Step("mixed", options=FrozenMap({"average": 3.5, "by": "gptq", "block": 32, "symmetric": False}))
    yield _row("whet-mixed-3.5-g32", 3.5, 32, [mixed])


def peer_rows() -> Iterator[Row]:
    yield from _peer("hqq", "hqq", ((8, 0), *SOME), {})
    for book in ("nf4", "fp4"):
        for double in (True, False):
            name = f"bitsandbytes-{book}{'-double' if double else ''}"
            yield Row(name, Way("bitsandbytes", "llm/bitsandbytes", {"book": book, "double": double}), 4, 64)
    yield from _peer("onnxruntime", "onnxruntime", ((8, 0), (4, 0), (4, 32), (4, 128), (2, 32)), {})  # it has no 3 bits
    yield from _peer("onnxruntime-sym", "onnxruntime", ((4, 32),), {"symmetric": True})
    yield from _peer("onnxruntime-hqq", "onnxruntime", ((4, 32), (2, 32)), {"method": "hqq"})
    yield from _peer("onnxruntime-k_quant", "onnxruntime", ((4, 32),), {"method": "k_quant"})
    yield from _peer("gptqmodel", "gptqmodel", SOME, {})
    yield from _peer("llm-compressor-gptq", "llmcompressor", SOME, {"method": "gptq"})
    yield from _peer("llm-compressor-gptq-asym", "llmcompressor", GROUPED[:2], {"method": "gptq", "symmetric": False})
    yield from _peer("llm-compressor-awq", "llmcompressor", GROUPED[:2], {"method": "awq", "symmetric": False})


def _whet(name: str, widths: Widths, *steps: tuple[str, dict[str, Any]], slow: bool = False) -> Iterator[Row]:
    """Every step with these bits and groups, where it has them: ``rotate`` rounds nothing, ``tune`` goes on with what was rounded."""
    for bits, group in widths:
        sizes = {"bits": bits, "block": group}
        made = [Step(technique, options=FrozenMap(_known(technique, {**sizes, **options}))) for technique, options in steps]
        yield _row(f"whet-{name}-{bits}-g{group}", bits, group, made, slow)


def _known(technique: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those that the technique has."""
    import whet

    known = {option.name for option in whet.technique(technique).options}
    return {name: value for name, value in options.items() if name in known}


def _row(name: str, bits: float, group: int, steps: list[Step], slow: bool = False) -> Row:
    return Row(name, Way("", "llm/whet", {"recipe": Recipe(tuple(steps)).to_text()}), bits, group, slow)


def _peer(name: str, peer: str, widths: Widths, options: dict[str, Any]) -> Iterator[Row]:
    environment = "" if peer == "onnxruntime" else peer  # Whet has it too
    for bits, group in widths:
        yield Row(f"{name}-{bits}-g{group}", Way(environment, f"llm/{peer}", {"bits": bits, "group": group, **options}), bits, group)
