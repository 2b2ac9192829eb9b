"""The technique contract: what a file in ``techniques/`` gives, and how it is found.

A technique is a file that holds two functions:

    def NAME(layer: LayerView, target: Target, *, option: Annotated[type, Search(...)] = default, ...) -> Change
    def foresee(layer: Layer, target: Target, *, the same options) -> Foresight

``NAME`` does the mathematics on one layer; ``foresee`` says without any work what it would do. The first docstring has the
sections Paper, Needs, Cost and Limits. CLI help, refusal of unknown options, search space and contract tests come from here.
A technique that must see more than a layer takes one of the views of ``views.py`` as its first parameter; ``walks/`` has the way
through the model for each.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from whet.compress.codebook import Coded
from whet.compress.grid import Array, Grid, Quantised
from whet.compress.statistics import Statistics
from whet.core.document import FrozenMap
from whet.core.errors import Refused

NEEDS = ("nothing", "calibration", "labels", "training")


@dataclass(frozen=True)
class Search:
    """The values that an option may be tried with; ``optimize`` searches them, the tests walk them.

    only: no others exist. least, most: where others do, what they must lie between (both included).
    """

    values: tuple[Any, ...]
    help: str = ""
    only: bool = True
    least: float = -math.inf
    most: float = math.inf

    def __init__(self, *values: Any, help: str = "", only: bool = True, least: float = -math.inf, most: float = math.inf) -> None:
        for name, value in (("values", values), ("help", help), ("only", only), ("least", least), ("most", most)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer as a technique sees it, whatever body it lives in.

    weight: [out, ...] float32, output channels first, or None where the layer has none. bias: [out] or None.
    grid: where the weight already lies, flattened to [out, in], because an earlier step rounded it; None where it is in float.
    inputs, output: statistics of its activations, None where they were not asked for or are not floating point.
    scales: the dtype that the body stores the scales of a rounded weight in; a grid must be made of such numbers. either_sign: whether
    what the body is for reads scales below 0, so that symmetric grids may use all of their codes.
    """

    name: str
    op: str
    weight: Array | None = None
    bias: Array | None = None
    inputs: tuple[Statistics | None, ...] = ()
    output: Statistics | None = None
    grid: Grid | None = None
    scales: str = "float32"
    either_sign: bool = False


@dataclass(frozen=True, eq=False)
class Change:
    """What a technique made of a layer; the body puts it back.

    weight: codes on a grid or on a code book, or an array of another dtype (float16), or None (as it was).
    compute: "float32", "float16", "int8" (inputs and output on the grids given) or "dynamic" (inputs quantised as they come).
    inputs, output: a grid for each input of the layer that is an activation, None for those that stay float.
    kernel: options of the kernel that runs it (block size of MatMulNBits, accuracy level).
    bias: [out] float32, the layer's bias from now on, or None (as it was).
    """

    weight: Quantised | Coded | Array | None = None
    compute: str = "float32"
    inputs: tuple[Grid | None, ...] = ()
    output: Grid | None = None
    kernel: Mapping[str, int] = field(default_factory=FrozenMap)
    bias: Array | None = None


@dataclass(frozen=True)
class Foresight:
    """What a technique would do to a layer. ``applies`` is False where it would leave it alone, and ``note`` says why.

    weights, activations: dtypes afterwards. bits, block: of the weights. runs_as: the kernel that the runtime will execute.
    adjusts: whether only numbers change (a bias, a factor moved to the next layer), so that types and kernels are as they were.
    """

    applies: bool
    weights: str = "float32"
    activations: str = "float32"
    bits: int = 32
    block: int = 0
    runs_as: str = ""
    note: str = ""
    adjusts: bool = False


@dataclass(frozen=True)
class Option:
    """A keyword option of a technique, with its search range beside its default."""

    name: str
    kind: type
    default: Any
    search: Search


@dataclass(frozen=True)
class Technique:
    """A technique as its file describes it. view: the class of what it is shown (LayerView, or one of ``views.py``). by_rows: whether
    the output channels know nothing of each other (the file says BY_ROWS = True), so that a large weight may be shown in pieces.
    """

    name: str
    sentence: str
    paper: str
    needs: str
    cost: str
    limits: str
    options: tuple[Option, ...]
    apply: Callable[..., Any]
    foresee: Callable[..., Foresight]
    view: type = LayerView
    by_rows: bool = False

    @property
    def enters_bodies(self) -> bool:
        """Whether it is done to layers inside an If, Loop or Scan too. Nobody sees the activations there, so only where none are needed."""
        return self.view is LayerView and self.needs == "nothing"

    def why_not_inside(self, name: str) -> str:
        """Why it leaves a layer inside the body of a control-flow operator alone."""
        around = name.split("/")[0]
        return f"{around} runs it inside a body of its own, where activations are not observed; weight_only, dynamic and float16 go there"

    @property
    def in_sites(self) -> bool:
        """Whether its layers compute in integers together, so that it depends on the neighbours of a layer whether that is done."""
        return self.view is LayerView and self.needs == "calibration"

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults filled in. Raises Refused on an unknown option or a value outside its range. ``group`` is another word for ``block``:
        the papers on language models call so what ONNX calls a block.
        """
        options = {"block" if name == "group" else name: value for name, value in options.items()}
        known = {option.name: option for option in self.options}
        for name in options:
            if name not in known:
                raise Refused(f"apply {self.name} with {name!r}", found="it has no such option",
                              do=f"its options are: {', '.join(known) or 'none'}")
        return {name: _checked_value(self.name, option, options.get(name, option.default)) for name, option in known.items()}


# What the layers of language models are called: matrices of the blocks, tables of tokens, and the matrix before the answers.
LANGUAGE_OPS = frozenset({"Linear", "Embedding", "Head"})


def rounded_matrix(bits: int, block: int, symmetric: bool, activations: int = 0) -> Foresight:
    """What becomes of such a layer where its weights are rounded: codes are packed whatever their bits, and scales are float16.
    activations: bits of the inputs, which are rounded as they come; the codes of such a layer are whole bytes.
    """
    if activations and (bits != 8 or not symmetric):
        return Foresight(False, note="int8 activations go with weights of 8 symmetric bits: no format holds others for integer products")
    if activations:
        return Foresight(True, "int8", "int8", bits, block, "int8 codes, int8 inputs")
    return Foresight(True, f"{'' if symmetric else 'u'}int{bits}", "float32", bits, block, "packed codes")


# Why a layer's inputs are not rounded as they come: in graphs ``static`` and ``dynamic`` do that.
NOT_BY_TOKEN = "activations = 8 is for the linear layers in the blocks of language models; in graphs static and dynamic round activations"


@cache
def technique(name: str) -> Technique:
    """The technique of that name. Raises Refused (naming all) where there is none."""
    if name not in technique_names():
        raise Refused(f"apply the technique {name!r}", found="there is none of that name", do=f"use one of: {', '.join(technique_names())}")
    module = importlib.import_module(f"whet.compress.techniques.{name}")
    function = getattr(module, name)
    sections = _sections(inspect.getdoc(function) or "")
    return Technique(name, sections[""], sections["Paper"], sections["Needs"].rstrip("."), sections["Cost"], sections["Limits"],
                     _options(function), function, module.foresee, _view(function), getattr(module, "BY_ROWS", False))


@cache
def technique_names() -> tuple[str, ...]:
    """The names of all techniques: the files in ``techniques/``."""
    from whet.compress import techniques

    return tuple(sorted(module.name for module in pkgutil.iter_modules(techniques.__path__)))


def _sections(text: str) -> dict[str, str]:
    """The docstring cut at its section words; "" holds the first sentence."""
    found = re.split(r"^(Paper|Needs|Cost|Limits): ", text, flags=re.MULTILINE)
    parts = {name: " ".join(body.split("\n\n")[0].split()) for name, body in zip(found[1::2], found[2::2], strict=True)}
    return {"": " ".join(found[0].split("\n\n")[0].split()), **parts}


def _view(function: Callable[..., Any]) -> type:
    """The class of the technique's first parameter."""
    first = next(iter(inspect.signature(function).parameters))
    found = typing.get_type_hints(function)[first]
    assert isinstance(found, type)
    return found


def _options(function: Callable[..., Any]) -> tuple[Option, ...]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind, search = typing.get_args(hints[parameter.name])
            found.append(Option(parameter.name, kind, parameter.default, search))
    return tuple(found)


def _checked_value(technique_name: str, option: Option, value: Any) -> Any:
    asked = f"apply {technique_name} with {option.name} = {value!r}"
    if option.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, option.kind) or (option.kind is int and isinstance(value, bool)):
        raise Refused(asked, found=f"a {type(value).__name__} where a {option.kind.__name__} is needed")
    if option.search.only and value not in option.search.values:
        raise Refused(asked, do=f"use one of: {', '.join(map(str, option.search.values))}")
    if isinstance(value, int | float) and not option.search.least <= value <= option.search.most:
        raise Refused(asked, do=f"use a number from {option.search.least:g} to {option.search.most:g}")
    return value
