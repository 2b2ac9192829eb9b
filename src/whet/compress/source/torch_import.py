"""``package.module:callable`` and a file of weights to a ``torch.nn.Module``: how a PyTorch model is named on the command line."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.core.errors import Refused

if TYPE_CHECKING:
    import torch

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights")


def is_reference(text: str) -> bool:
    """Whether the text has the form "package.module:callable"."""
    return _REFERENCE.fullmatch(text) is not None


def import_callable(reference: str, weights: str | os.PathLike[str] | None = None) -> torch.nn.Module:
    """The module that "package.module:callable" gives: a Module, or what a class or function without arguments returns.

    The current folder is searched first while it is imported and called. weights: a state dict, ``.safetensors`` or what
    ``torch.save(module.state_dict(), path)`` wrote; it must fit exactly ("module." in front of every name is taken off, and a
    checkpoint that holds the state dict under "state_dict" or "model" is opened).
    **This runs the code that it imports**; of a file of weights nothing is run. Raises Refused.
    """
    asked = f"import {reference}"
    if not is_reference(reference):
        raise Refused(asked, found="that is not of the form package.module:callable", do="for example `my_models.resnet:resnet20`")
    name, _, path = reference.partition(":")
    with _current_folder_first():
        found = _imported(name, path, asked)
        module = _built(found, asked)
    if weights is not None:
        _load(module, Path(weights))
    return module


@contextmanager
def _current_folder_first() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _imported(name: str, path: str, asked: str) -> Any:
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        do = "give the name as in `import`, from the folder where that works"
        if missing != name and not name.startswith(f"{missing}."):
            do = f"install {missing!r} in this environment"
        raise Refused(asked, found=f"there is no module {missing!r}", do=do) from error
    except Exception as error:  # the user's own code
        raise Refused(asked, found=f"importing {name!r} fails ({type(error).__name__}: {error})", do="correct the module") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise Refused(asked, found=f"{name!r} has no {path!r}", do="name a class, a function or a module that is defined there")
        found = getattr(found, part)
    return found


def _built(found: Any, asked: str) -> torch.nn.Module:
    from torch import nn

    if not isinstance(found, nn.Module):
        if not callable(found):
            raise Refused(asked, found=f"it is a {type(found).__name__}", do="name a torch.nn.Module, or a function that returns one")
        try:
            found = found()
        except Exception as error:  # the user's own code
            raise Refused(asked, found=f"calling it without arguments fails ({type(error).__name__}: {error})",
                          do="write a function without arguments that returns the module, and name that") from error
    if not isinstance(found, nn.Module):
        raise Refused(asked, found=f"it returns a {type(found).__name__}", do="return a torch.nn.Module")
    return found


def _load(module: torch.nn.Module, path: Path) -> None:
    asked = f"load the weights {path}"
    if not path.is_file():
        raise Refused(asked, found="there is no such file", do="check the path")
    state = _unwrapped(_read_safetensors(path, asked) if path.suffix == ".safetensors" else _read_pickle(path, asked), asked)
    own = set(module.state_dict())
    if own and not own & set(state) and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # nn.DataParallel's wrapper
    missing, foreign = sorted(own - set(state)), sorted(set(state) - own)
    if missing or foreign:
        kinds = ((missing, "missing"), (foreign, "unknown"))
        what = " and ".join(f"{len(names)} are {word} ({', '.join(names[:4])})" for names, word in kinds if names)
        raise Refused(asked, found=f"its names do not fit {type(module).__name__}: {what}", do="give the weights of this model")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:400]
        raise Refused(asked, found=f"the shapes do not fit ({text})", do="give the weights of this very model") from error


def _read_pickle(path: Path, asked: str) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, zipfile's own
        raise Refused(asked, found=f"it is damaged, or holds code besides weights, which is not run ({_first_line(error)})",
                      do="save the state dict alone: torch.save(model.state_dict(), path)") from error


def _read_safetensors(path: Path, asked: str) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise Refused(asked, found="the package safetensors is not installed", do="pip install safetensors, or give a .pt file") from error
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError is not exported in every version
        raise Refused(asked, found=f"it is damaged ({_first_line(error)})", do="copy it again") from error


def _unwrapped(state: Any, asked: str) -> dict[str, torch.Tensor]:
    import torch

    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise Refused(asked, found="it holds no state dict (names with tensors)", do="save one: torch.save(model.state_dict(), path)")
    return {str(name): tensor for name, tensor in state.items()}


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
