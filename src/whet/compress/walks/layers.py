"""Layer by layer, each weight on its own; nothing is known of activations."""

from __future__ import annotations

from dataclasses import replace

from whet.compress.graph import GraphModel
from whet.compress.grid import Quantised
from whet.compress.technique import Change
from whet.compress.walks import Work
from whet.core.progress import track


def walk(model: GraphModel, work: Work) -> GraphModel:
    """Show the technique each weight of each layer, and each operator without weights as a bare view."""
    used, target = work.technique, work.target
    views = model.views(list(work.layers))
    changes = {name: {slot: used.apply(view, target, **work.layers[name]) for slot, view in found.items()}
               for name, found in track(views.items(), used.name, len(views))}
    bare = [name for name in work.layers if name not in views]  # operators without weights, for techniques that change how they compute
    computing = {name: used.apply(model.bare_view(name), target, **work.layers[name]) for name in bare}
    kept = {} if work.last else {name: found for name, found in changes.items() if all(map(_only_rounds, found.values()))}
    put = {name: found for name, found in changes.items() if name not in kept}
    made = model.with_weights(put, target, computing) if put or computing else model
    # What was pending for these weights is overruled; a later step goes on from the rounded ones.
    made = replace(made, pending={key: change for key, change in made.pending.items() if key[0] not in changes},
                   reference=model.reference or model)
    return made.rounded(kept) if kept else made


def _only_rounds(change: Change) -> bool:
    return change.compute == "float32" and isinstance(change.weight, Quantised)
