"""The operators that compute in integers together, each with the statistics of what it reads and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from whet.compress.calibrate import collect
from whet.compress.graph import GraphModel
from whet.compress.put.sites import Site, torn
from whet.compress.ranges import wanted
from whet.compress.statistics import Statistics
from whet.compress.technique import Change
from whet.compress.walks import Work
from whet.compress.walks.unequal_branches import balanced
from whet.compress.walks.unequal_inputs import collected_again, evened, float_inputs
from whet.core.errors import Unsupported
from whet.core.progress import track


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Calibrate, show the technique each site, and let the sites compute in integers. Raises Unsupported where there is none."""
    working = model.copied()
    found, statistics, divided = _prepare(working, work)
    # With its branches divided, so that tensors of one name can be compared.
    reference = model.reference or (working.copied() if divided else model)
    changes = changes_for(working, found, statistics, work)
    return replace(working.with_integers(found, changes, work.target), reference=reference)


def prepared(model: GraphModel, work: Work) -> tuple[GraphModel, dict[str, Site], dict[str, Statistics]]:
    """All that comes before the technique: a copy of the model, with inputs divided that need it, the sites in it, and the statistics
    of their tensors. Raises Unsupported where there is no site."""
    working = model.copied()
    found, statistics, _ = _prepare(working, work)
    return working, found, statistics


def _prepare(working: GraphModel, work: Work) -> tuple[dict[str, Site], dict[str, Statistics], bool]:
    """``prepared`` in the graph of ``working`` itself: the sites, the statistics, and whether anything was divided."""
    found = working.integer_sites(list(work.layers), work.target)
    if not found:
        found_none = "none of them has weights or a neighbour that computes in integers"
        raise Unsupported(f"apply {work.technique.name} to {', '.join(list(work.layers)[:5])}", found=found_none,
                          do="name the convolutions and matrix products too")
    statistics = statistics_of(working, found, work)
    widths = {name: max(each.high, 0.0) - min(each.low, 0.0) for name, each in statistics.items()}
    if unequal := torn(found, widths, work.target):
        found = working.integer_sites([name for name in work.layers if name not in unequal], work.target)
    if names := (*evened(working, found, statistics, work), *balanced(working, found, statistics)):
        found = working.integer_sites([name for name in work.layers if name not in unequal], work.target)
        statistics |= collected_again(working, names, work, wanted(work.layers.values()))
    return found, statistics, bool(names)


def observed(found: Mapping[str, Site]) -> tuple[str, ...]:
    """The names of the tensors that the grids of these sites lie on, each once."""
    names: dict[str, None] = {}
    for site in found.values():
        for value in (*site.tensors, *(() if site.output is None else (site.output,))):
            names[value.name or ""] = None
    return tuple(names)


def statistics_of(model: GraphModel, found: Mapping[str, Site], work: Work) -> dict[str, Statistics]:
    """Of every tensor that gets a grid; those whose range an earlier step found are not observed again."""
    missing = [name for name in observed(found) if name not in model.ranges]
    channels = {name: given.axis for name, given in float_inputs(model, found, work.target).items()}
    known = {name: _found_before(name, *model.ranges[name]) for name in observed(found) if name in model.ranges}
    if not missing:
        return known
    asked = wanted(work.layers.values())
    return known | collect(model, missing, work.calibration, histogram=asked.histogram, tails=asked.tails, channels=channels)


def _found_before(name: str, low: float, high: float) -> Statistics:
    """What every method of finding a range makes the same range of."""
    return Statistics(name, low=low, high=high, mean_low=low, mean_high=high, count=1, batches=1)


def changes_for(model: GraphModel, found: Mapping[str, Site], statistics: Mapping[str, Statistics], work: Work) -> dict[str, Change]:
    """The technique on every site."""
    used = work.technique
    return {name: used.apply(model.site_view(site, statistics), work.target, **work.layers[name])
            for name, site in track(found.items(), used.name, len(found))}
