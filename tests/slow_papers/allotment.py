"""The allotment by trying everything: each unit each way, judged sentence by sentence as docs/mixed.md has it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from whet.compress.mixed.problem import Problem


def everything(problem: Problem) -> Iterator[tuple[dict[str, str], float, float]]:
    """(choice, cost, harm) of every choice that the runtime would execute as it says."""
    names = [unit.name for unit in problem.units]
    for ways in product(*[unit.offers for unit in problem.units]):
        mine = dict(zip(names, ways, strict=True))
        whole = {name for name in names if mine[name].way.integers}
        if not all(accompanied(problem, unit.name, whole) for unit in problem.units if unit.follows and unit.name in whole):
            continue
        cost = sum(offer.cost for offer in ways)
        harm = sum(offer.harm for offer in ways)
        for border in problem.borders:
            codes_made = border.maker in whole
            codes_read = [reader for reader in border.readers if reader in whole]
            floats_read = len(codes_read) < len(border.readers) or border.in_float
            gridded = bool(codes_read) or (codes_made and not border.ends_float)
            if gridded:
                harm += border.harm
            if not codes_made and codes_read:
                cost += border.to_integers
            if codes_made and floats_read and gridded:
                cost += border.to_float
        yield {name: offer.way.name for name, offer in mine.items()}, cost, harm


def accompanied(problem: Problem, name: str, whole: set[str]) -> bool:
    before = behind = False
    for border in problem.borders:
        if name in border.readers and border.maker in whole:
            before = True
        if border.maker == name:
            for reader in border.readers:
                if reader in whole:
                    behind = True
    return before and behind


def cheapest(problem: Problem, budget: float) -> float | None:
    """The least cost within the budget; None where nothing is within it."""
    costs = [cost for _, cost, harm in everything(problem) if harm <= budget]
    return min(costs) if costs else None


def unbeaten(problem: Problem) -> list[tuple[float, float]]:
    """(cost, harm) that no other choice beats, the cheapest first."""
    found = sorted({(cost, harm) for _, cost, harm in everything(problem)})
    best: list[tuple[float, float]] = []
    for cost, harm in found:
        if not best or harm < best[-1][1]:
            best.append((cost, harm))
    return best
