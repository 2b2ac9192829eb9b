"""Whet takes a trained model and makes it fit an edge device, proves that it still does its job, and keeps it working there.

    import whet

    model = whet.load("model.onnx")            # or a torch.nn.Module with example_inputs=
    print(whet.inspect(model).macs)
    outcome = whet.optimize(model, data="eval.npz", calibration="calib.npz", metric="accuracy", max_drop=0.01, out="out")

Everything is imported when it is first used: ``import whet`` needs no more than the standard library, measuring needs numpy and
onnxruntime, and whatever changes a model needs ``pip install whet[compress]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.compress.apply import apply as apply
    from whet.compress.artifacts import load as load
    from whet.compress.compare import compare as compare
    from whet.compress.data import load_data as load_data
    from whet.compress.explain import explain as explain
    from whet.compress.export import export as export
    from whet.compress.inspect import inspect as inspect
    from whet.compress.measure import measure as measure
    from whet.compress.optimize import optimize as optimize
    from whet.compress.plan import plan as plan
    from whet.compress.technique import technique as technique
    from whet.compress.technique import technique_names as technique_names
    from whet.core.errors import Refused as Refused
    from whet.core.errors import Unreachable as Unreachable
    from whet.core.errors import Unsupported as Unsupported
    from whet.core.errors import Untrusted as Untrusted
    from whet.core.errors import WhetError as WhetError
    from whet.core.progress import reporting as reporting
    from whet.core.recipe import Recipe as Recipe
    from whet.core.recipe import Step as Step
    from whet.core.target import Target as Target
    from whet.device.targets import target as target
    from whet.device.targets import targets as targets

__version__ = "0.1.0"

_HOMES = {
    "apply": "compress.apply", "load": "compress.artifacts", "compare": "compress.compare", "load_data": "compress.data",
    "explain": "compress.explain", "export": "compress.export", "inspect": "compress.inspect", "measure": "compress.measure",
    "optimize": "compress.optimize",
    "plan": "compress.plan", "technique": "compress.technique", "technique_names": "compress.technique",
    "Refused": "core.errors", "Unreachable": "core.errors", "Unsupported": "core.errors", "Untrusted": "core.errors",
    "WhetError": "core.errors", "reporting": "core.progress", "Recipe": "core.recipe", "Step": "core.recipe",
    "Target": "core.target", "target": "device.targets", "targets": "device.targets",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"whet has no {name!r}")
    home = _HOMES[name]
    try:
        module = importlib.import_module(f"whet.{home}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("whet") or not home.startswith("compress"):
            raise
        from whet.core.errors import Refused

        found = f"the package {error.name!r} is not installed"
        raise Refused(f"use whet.{name}", found=found, do="pip install 'whet[compress]'") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return list(__all__)
