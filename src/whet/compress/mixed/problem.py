"""The words of the allotment: units that choose a way, borders between them, and what a choice costs and harms. Pure.

The harm of a choice is taken to be the sum of what each rounded weight and each activation on a grid does alone (Nahshan et al. 2021,
"Loss aware post-training quantization", section 3: additive where noise is small); ``search`` holds the sum against full evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whet.core.document import FrozenMap


@dataclass(frozen=True)
class Way:
    """One way to store and compute a layer. technique: that brings it, with its options; "" leaves the layer as it is.

    integers: whether the runtime computes it in integers, so that its activations lie on grids.
    """

    name: str
    technique: str = ""
    options: Mapping[str, Any] = field(default_factory=FrozenMap)
    integers: bool = False


FLOAT = Way("float32")


@dataclass(frozen=True)
class Offer:
    """A way as one unit may have it. cost: in the unit of what is minimised (us, bytes). harm: of its rounded weights alone."""

    way: Way
    cost: float = 0.0
    harm: float = 0.0


@dataclass(frozen=True)
class Unit:
    """Layers that choose together (they share a weight, else one layer), in the order of execution.

    follows: it has no weights, and computes in integers only between neighbours that do (``put.sites``).
    """

    name: str
    layers: tuple[str, ...]
    offers: tuple[Offer, ...] = ()
    follows: bool = False

    def offer(self, way: str) -> Offer:
        return next(offer for offer in self.offers if offer.way.name == way)


@dataclass(frozen=True)
class Border:
    """An activation that lies on a grid if its maker or one of its readers computes in integers.

    maker: a unit, "" for what always is float (an input of the model, an operator without integer kernel). readers: units.
    in_float: something that is no unit reads it too. ends_float: its maker is a product, which gives float where no reader wants codes.
    last: the operator that gives what the readers read: the maker, or the last of those behind it that only move data; "" for an input.
    to_integers, to_float: cost of the QuantizeLinear, of the DequantizeLinear. harm: of the grid alone.
    """

    tensor: str
    maker: str
    readers: tuple[str, ...]
    in_float: bool = False
    ends_float: bool = False
    last: str = ""
    to_integers: float = 0.0
    to_float: float = 0.0
    harm: float = 0.0


@dataclass(frozen=True)
class Problem:
    """Units in the order of execution, and the borders between them."""

    units: tuple[Unit, ...]
    borders: tuple[Border, ...] = ()

    def unit(self, name: str) -> Unit:
        return next(unit for unit in self.units if unit.name == name)


Choice = Mapping[str, str]
"""The name of a way for each unit."""


def integers(problem: Problem, choice: Choice) -> frozenset[str]:
    """The units that compute in integers, "" never."""
    return frozenset(unit.name for unit in problem.units if unit.offer(choice[unit.name]).way.integers)


def on_grid(border: Border, chosen: frozenset[str]) -> bool:
    """Whether the activation lies on a grid when the units ``chosen`` compute in integers."""
    return any(reader in chosen for reader in border.readers) or (border.maker in chosen and not border.ends_float)


def crossings(border: Border, chosen: frozenset[str]) -> tuple[bool, bool]:
    """(a QuantizeLinear runs, a DequantizeLinear runs) on the border."""
    wanted = any(reader in chosen for reader in border.readers)
    left = border.in_float or any(reader not in chosen for reader in border.readers)
    return border.maker not in chosen and wanted, border.maker in chosen and left and on_grid(border, chosen)


def cost_of(problem: Problem, choice: Choice) -> float:
    chosen = integers(problem, choice)
    total = sum(unit.offer(choice[unit.name]).cost for unit in problem.units)
    for border in problem.borders:
        quantised, dequantised = crossings(border, chosen)
        total += border.to_integers * quantised + border.to_float * dequantised
    return total


def harm_of(problem: Problem, choice: Choice) -> float:
    chosen = integers(problem, choice)
    weights = sum(unit.offer(choice[unit.name]).harm for unit in problem.units)
    return weights + sum(border.harm for border in problem.borders if on_grid(border, chosen))


def in_company(problem: Problem, name: str, chosen: frozenset[str]) -> bool:
    """Whether a unit without weights has a neighbour in integers before and behind it."""
    before = any(border.maker in chosen for border in problem.borders if name in border.readers)
    behind = any(reader in chosen for border in problem.borders if border.maker == name for reader in border.readers)
    return before and behind


def possible(problem: Problem, choice: Choice) -> bool:
    """Whether the runtime would execute the choice as it says."""
    chosen = integers(problem, choice)
    return all(in_company(problem, unit.name, chosen) for unit in problem.units if unit.follows and unit.name in chosen)


def all_integers(problem: Problem) -> Choice:
    """Every unit in 8-bit integers that can be, the others as they are."""
    choice = {unit.name: "int8" if any(offer.way.name == "int8" for offer in unit.offers) else FLOAT.name for unit in problem.units}
    while not possible(problem, choice):
        chosen = integers(problem, choice)
        choice |= {unit.name: FLOAT.name for unit in problem.units
                   if unit.follows and unit.name in chosen and not in_company(problem, unit.name, chosen)}
    return choice
