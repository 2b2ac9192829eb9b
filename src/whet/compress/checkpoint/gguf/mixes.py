"""Which tensor gets which type: llama.cpp's named mixes as a table, and what stands in where rows are no whole blocks.

Some layers are worth more bits than others: the head always; the values and the layer that ends the feed-forward in some blocks. The rules
are those of llama_tensor_get_type in src/llama-quant.cpp of llama.cpp for dense models, without an importance matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from whet.compress.checkpoint.gguf.blocks import TYPES
from whet.core.document import FrozenMap
from whet.core.errors import Refused

AUTO = "auto"


@dataclass(frozen=True)
class Place:
    """Where a matrix stands. role: the name of its tensor without block and ".weight": "attn_v", "output", ... index, count: its block, of
    how many. shared: how many heads read the values of one (grouped-query attention).
    """

    role: str
    index: int
    count: int
    shared: int


Where = Callable[[Place], bool]


def _always(place: Place) -> bool:
    return True


def _ends_and_every_third(place: Place) -> bool:
    """The first and the last eighth of the blocks, and each third one between."""
    eighth = place.count // 8
    return place.index < eighth or place.index >= 7 * place.count // 8 or (place.index - eighth) % 3 == 2


def _first(share: int) -> Where:
    return lambda place: place.index < place.count // share


def _first_blocks(count: int) -> Where:
    return lambda place: place.index < count


def _widely_shared(place: Place) -> bool:
    return place.shared >= 4


@dataclass(frozen=True)
class Mix:
    """most: the type of matrices without a rule. head: of the head, and of an embedding that is the head as well. rules: by role, the first
    whose condition holds. file_type: llama.cpp's number for it (LLAMA_FTYPE).
    """

    most: str
    file_type: int
    head: str = "Q6_K"
    rules: Mapping[str, tuple[tuple[Where, str], ...]] = field(default_factory=FrozenMap)

    def type_of(self, place: Place) -> str:
        if place.role == "output":
            return self.head
        return next((kind for where, kind in self.rules.get(place.role, ()) if where(place)), self.most)


MIXES: Mapping[str, Mix] = MappingProxyType({
    "f32": Mix("F32", 0, head="F32"),
    "f16": Mix("F16", 1, head="F16"),
    "bf16": Mix("BF16", 32, head="BF16"),
    "q8_0": Mix("Q8_0", 7, head="Q8_0"),
    "q4_0": Mix("Q4_0", 2),
    "q4_1": Mix("Q4_1", 3),
    "q5_0": Mix("Q5_0", 8),
    "q5_1": Mix("Q5_1", 9),
    "q6_k": Mix("Q6_K", 18),
    "q5_k_m": Mix("Q5_K", 17, rules=FrozenMap({
        "attn_v": ((_ends_and_every_third, "Q6_K"),), "ffn_down": ((_ends_and_every_third, "Q6_K"),), "attn_qkv": ((_always, "Q6_K"),)})),
    "q4_k_m": Mix("Q4_K", 15, rules=FrozenMap({
        "attn_v": ((_ends_and_every_third, "Q6_K"),), "ffn_down": ((_ends_and_every_third, "Q6_K"),), "attn_qkv": ((_always, "Q5_K"),)})),
    "q4_k_s": Mix("Q4_K", 14, rules=FrozenMap({"attn_v": ((_first_blocks(4), "Q5_K"),), "ffn_down": ((_first(8), "Q5_K"),)})),
    "q3_k_m": Mix("Q3_K", 12, rules=FrozenMap({
        "attn_v": ((_first_blocks(2), "Q5_K"), (_always, "Q4_K")), "ffn_down": ((_first(16), "Q5_K"), (_always, "Q4_K")),
        "attn_output": ((_always, "Q4_K"),), "attn_qkv": ((_always, "Q4_K"),)})),
    "q2_k": Mix("Q2_K", 10, rules=FrozenMap({
        "attn_v": ((_widely_shared, "Q4_K"), (_always, "Q3_K")), "ffn_down": ((_always, "Q3_K"),), "attn_output": ((_always, "Q3_K"),)})),
})
KINDS = (AUTO, *MIXES)

# What stands in for a super-block of 256 where a row is no multiple of it; where it is none of 32 either, float16.
_STAND_INS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FLOATS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def mix_of(kind: str) -> Mix | None:
    """The mix of a name, None for "auto". Raises Refused for a name that there is not."""
    if kind not in KINDS:
        raise Refused(f'export to GGUF as "{kind}"', found="no such kind", do=f"use one of {', '.join(KINDS)}")
    return MIXES.get(kind)


def fitting(kind: str, columns: int) -> str:
    """The type, or what stands in for it for rows of so many columns."""
    for each in (kind, _STAND_INS.get(kind, kind)):
        if columns % TYPES[each].numbers == 0:
            return each
    return "F16"


def type_chosen(mix: Mix | None, place: Place, columns: int, *, exact: str | None, dtype: str) -> str:
    """The type of one matrix.

    exact: the type that holds its codes as they are, None where there is none. dtype: as safetensors names the type of its numbers, ""
    where it is rounded. Without a mix: what holds it exactly; else 8 bits. With one: its type, or the exact one where that is no larger.
    """
    if mix is None:
        return exact or _FLOATS.get(dtype, "F32" if dtype else fitting("Q8_0", columns))
    asked = fitting(mix.type_of(place), columns)
    return exact if exact is not None and TYPES[exact].bits <= TYPES[asked].bits else asked
