"""Recipe: ordered steps, each *apply a technique to some layers with some options*. Editable by hand, as TOML:

    [[step]]
    apply = "static"
    to = ["*"]
    except = ["conv1", "op:Softmax"]
    with = {ranges = "percentile"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol, Self

from whet.core.document import Document, FrozenMap, key
from whet.core.errors import Refused
from whet.core.toml import parse_toml, to_toml


class Named(Protocol):
    """Whatever a selector can match: it has a name and an operator."""

    @property
    def name(self) -> str: ...

    @property
    def op(self) -> str: ...


@dataclass(frozen=True)
class Step(Document):
    """One step. ``layers`` and ``exclude`` hold selectors: a name, a pattern with ``*`` and ``?``, or ``op:Conv``."""

    technique: str = field(metadata=key("apply"))
    layers: tuple[str, ...] = field(default=("*",), metadata=key("to"))
    exclude: tuple[str, ...] = field(default=(), metadata=key("except"))
    options: Mapping[str, Any] = field(default_factory=FrozenMap, metadata=key("with"))

    def selects(self, layer: Named) -> bool:
        """Whether the step is meant for this layer."""
        return _any_match(self.layers, layer) and not _any_match(self.exclude, layer)


@dataclass(frozen=True)
class Recipe(Document):
    """Steps in the order in which they are done. An empty recipe leaves the model as it is."""

    steps: tuple[Step, ...] = field(default=(), metadata=key("step"))
    name: str = ""

    def to_text(self) -> str:
        """The recipe as TOML."""
        return to_toml(self.to_plain())

    @classmethod
    def from_text(cls, text: str, *, what: str = "a recipe") -> Self:
        """TOML to recipe. Raises Refused (naming ``what``) where it is no TOML or a key is unknown."""
        recipe = cls.from_plain(parse_toml(text, what=what))
        # A misspelt key in a file that people edit must not be kept in silence: `excpt = [...]` would quantise the layer.
        unknown = [*recipe.extra, *(name for step in recipe.steps for name in step.extra)]
        if unknown:
            raise Refused(f"read {what}", found=f"unknown key {unknown[0]!r}", do="a step has apply, to, except and with")
        return recipe


def matched(step: Step, layers: Iterable[Named]) -> tuple[str, ...]:
    """The names of the layers that the step selects, in order. Raises Refused where a selector matches nothing at all."""
    layers = tuple(layers)
    for selector in (*step.layers, *step.exclude):
        if not any(_matches(selector, layer) for layer in layers):
            known = ", ".join(layer.name for layer in layers[:8]) or "none"
            raise Refused(f"apply {step.technique} to {selector!r}", found=f"it matches no layer (there are: {known})",
                          do="`whet inspect` lists the layers; correct the selector or leave the step out")
    names = tuple(layer.name for layer in layers if step.selects(layer))
    if not names:
        raise Refused(f"apply {step.technique}", found="`except` takes away every layer that `to` selects",
                      do="narrow `except` or leave the step out")
    return names


def _any_match(selectors: Iterable[str], layer: Named) -> bool:
    return any(_matches(selector, layer) for selector in selectors)


def _matches(selector: str, layer: Named) -> bool:
    if selector == layer.name:  # first, because a name may itself hold pattern characters or begin with "op:"
        return True
    pattern = selector.replace("[", "[[]")  # names hold brackets ("layers[0]"), so only * and ? are special
    return fnmatchcase(layer.op, pattern[3:]) if selector.startswith("op:") else fnmatchcase(layer.name, pattern)
