"""A checkpoint whose numbers are others, though it computes the same: each tensor is turned when it is read, and none is held."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.tensor_files import Entry, TensorFile
from whet.compress.technique import Technique, technique
from whet.compress.views import Stream
from whet.core.document import FrozenMap
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.core.target import Target


def turned(checkpoint: Checkpoint, recipe: Recipe, target: Target) -> tuple[Checkpoint, Recipe]:
    """The checkpoint as the first steps of the recipe leave it, as far as they turn the whole model, and the steps that are left.

    Raises Refused where such a step stands behind another one or names layers, Unsupported where the model cannot be turned.
    """
    steps = list(recipe.steps)
    while steps and _turns(steps[0]):
        checkpoint = _turned(checkpoint, steps.pop(0), target)
    late = next((step for step in steps if _turns(step)), None)
    if late is not None:
        raise Refused(f"apply {late.technique} behind {steps[0].technique}", found="weights that are rounded by then",
                      do=f"put {late.technique} first")
    return checkpoint, Recipe(tuple(steps), recipe.name)


def rotation_for(checkpoint: Checkpoint, target: Target) -> Step | None:
    """The ``rotate`` step that turns as much of a model as can be turned without making it larger; None where nothing can be."""
    for residual, heads in ((True, True), (True, False), (False, True)):
        step = Step("rotate", options=FrozenMap({"residual": residual, "heads": heads}))
        if not (residual and checkpoint.tied):
            with suppress(Refused, Unsupported):
                _turned(checkpoint, step, target)
                return step
    return None


def _turns(step: Step) -> bool:
    return technique(step.technique).view is Stream


def _turned(checkpoint: Checkpoint, step: Step, target: Target) -> Checkpoint:
    used = technique(step.technique)
    options = used.checked(step.options)
    asked = f"apply {used.name} to this {checkpoint.family.name} model"
    if step.layers != ("*",) or step.exclude:
        raise Refused(asked, found="a step that names layers", do="leave the names out: the whole model is turned, or nothing")
    if checkpoint.layouts:
        raise Refused(asked, found="weights that are rounded already", do="begin with the float model")
    if not (options["residual"] or options["heads"]):
        raise Refused(asked, found="residual = false and heads = false", do="turn one of them")
    if options["heads"] and not checkpoint.family.values:
        raise Unsupported(asked, found="no layer that gives the values of attention as its last outputs", do="say heads = false")
    config = checkpoint.config
    if options["residual"]:
        _check_residual(checkpoint, asked)
        if checkpoint.tied and not options["untie"]:
            raise Refused(asked, found="an embedding that is the head too: turned, the two differ by the gains of the last norm",
                          do="say untie = true for a head of its own, or residual = false")
        config = {**config, "tie_word_embeddings": False}
    return Turned(checkpoint.folder, config, checkpoint.family, checkpoint.files, before=checkpoint, used=used, options=options,
                  target=target)


def _check_residual(checkpoint: Checkpoint, asked: str) -> None:
    """Raises Unsupported where something looks at single channels of what flows from block to block."""
    family = checkpoint.family
    norms = [*(f"{checkpoint.block_name(0)}.{each.norm}" for each in family.readers if each.norm), family.norm]
    if family.encoder or family.positions or any(f"{norm}.bias" in checkpoint.entries for norm in norms):
        raise Unsupported(asked, found="LayerNorms, which take the mean of all channels away: that of turned channels is another",
                          do="say residual = false")
    block, (_, width) = checkpoint.block_name(0), checkpoint.size(family.embedding)
    known = {*norms, *checkpoint.block_layers(0)}
    for name in checkpoint.names_under(block):
        module = name.rpartition(".")[0]
        if module not in known and width in checkpoint.entries[name][1].shape:
            raise Unsupported(asked, found=f"{name}, which multiplies single channels of what a block adds",
                              do="say residual = false")


@dataclass(frozen=True, eq=False)
class Turned(Checkpoint):
    """before: the checkpoint that the tensors are read from. used, options, target: the technique that turns them."""

    before: Checkpoint = field(kw_only=True)
    used: Technique = field(kw_only=True)
    options: Mapping[str, Any] = field(kw_only=True)
    target: Target = field(kw_only=True)

    @cached_property
    def entries(self) -> Mapping[str, tuple[TensorFile, Entry]]:
        """Those of before; a head that was the embedding is read from the embedding's place."""
        family, found = self.family, dict(self.before.entries)
        if self._residual and self.before.tied:
            found[f"{family.head}.weight"] = found[f"{family.embedding}.weight"]
        return found

    def tensor(self, name: str) -> Tensor:
        """A tensor as it will be stored."""
        head = f"{self.family.head}.weight"
        before = self.before.tensor(f"{self.family.embedding}.weight" if name == head and self.before.tied else name)
        module, _, part = name.rpartition(".")
        if module in self._norms:
            return torch.full_like(before, 1.0 - self.family.norm_offset)
        if part == "weight" and before.ndim == 2:
            return self._weight(module, before.float()).to(before.dtype)
        return self._bias(module, before.float()).to(before.dtype) if part == "bias" else before

    @property
    def _residual(self) -> bool:
        return bool(self.options["residual"])

    @cached_property
    def _gains(self) -> Mapping[str, str]:
        """By layer that reads what flows from block to block, the norm that it reads it through."""
        if not self._residual:
            return {}
        family = self.family
        blocks = [self.block_name(index) for index in range(self.block_count)]
        inside = {f"{block}.{layer}": f"{block}.{each.norm}" for block in blocks for each in family.readers if each.norm
                  for layer in each.layers}
        return {**inside, family.head: family.norm}

    @cached_property
    def _norms(self) -> frozenset[str]:
        """The norms whose gains go into the layers behind them."""
        return frozenset(self._gains.values())

    @cached_property
    def _writers(self) -> frozenset[str]:
        """The layers whose output is added to what flows from block to block: those that read no norm."""
        blocks = [self.block_name(index) for index in range(self.block_count)] if self._residual else []
        return frozenset(f"{block}.{layer}" for block in blocks for each in self.family.readers if not each.norm for layer in each.layers)

    def _weight(self, layer: str, weight: Tensor) -> Tensor:
        """[out, in] or [rows, width]."""
        if layer in self._gains:
            gains = self.before.tensor(f"{self._gains[layer]}.weight").float() + self.family.norm_offset
            weight = self._changed(layer, weight * gains)
        elif self._residual and layer == self.family.embedding:
            weight = self._changed(layer, weight)
        elif layer in self._writers:
            weight = self._changed(layer, weight.t()).t()
        if self._in_heads(layer, 0):
            weight = self._values(layer, weight)
        elif self._in_heads(layer, 1):
            weight = self._changed(layer, weight.reshape(len(weight), -1, self._head_width)).reshape(weight.shape)
        return weight.contiguous()

    def _bias(self, layer: str, bias: Tensor) -> Tensor:
        """[out]"""
        bias = self._changed(layer, bias) if layer in self._writers else bias
        return self._values(layer, bias[:, None])[:, 0] if self._in_heads(layer, 0) else bias

    def _values(self, layer: str, weight: Tensor) -> Tensor:
        """[out, in] with the last outputs, which are the values of the heads, turned within each head."""
        heads = int(self.config.get("num_key_value_heads") or self.config["num_attention_heads"])
        first = len(weight) - heads * self._head_width
        own = weight[first:].reshape(heads, self._head_width, -1).transpose(1, 2)  # [heads, in, channels]
        values = self._changed(layer, own).transpose(1, 2).reshape(-1, weight.shape[1])
        return torch.cat([weight[:first], values])

    def _in_heads(self, layer: str, place: int) -> bool:
        """Whether it is the layer that gives the values (0), or the one that reads what attention made of them (1)."""
        inside = layer.startswith(f"{self.family.blocks}.")
        return bool(self.options["heads"]) and inside and layer.endswith(f".{self.family.values[place]}")

    @cached_property
    def _head_width(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    def _changed(self, name: str, values: Tensor) -> Tensor:
        """Values [..., width] as the technique turns them."""
        view = Stream(name, values.shape[-1], {name: values.numpy()})
        return torch.from_numpy(self.used.apply(view, self.target, **self.options)[name])
