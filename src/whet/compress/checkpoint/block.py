"""One block at work: its weights in float32, what its layers read, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from whet.compress.checkpoint.families import Readers
from whet.compress.checkpoint.late import LateWeight
from whet.compress.checkpoint.skeleton import Skeleton
from whet.compress.codebook import Coded
from whet.compress.grid import Array, Quantised
from whet.compress.technique import LayerView

SCALES = "float16"  # what the scales of rounded weights are stored as: every format that Whet writes has room for no more


class _Enough(Exception):  # not an error: the rest of the block need not run
    """The layer that was waited for has its input."""


@dataclass
class BlockAtWork:
    """A filled block of a skeleton.

    rounded: what is to be stored for its layers, by whole name. plain: other tensors that were changed, as they are stored, by whole name.
    more: whether a step after this one may round again, from the float weights. late: whether weights become float32 only while they
    multiply; the skeleton's block was filled so too.
    """

    skeleton: Skeleton
    index: int
    more: bool = False
    rounded: dict[str, Quantised | Coded | Array] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    late: bool = False
    _floats: dict[str, Tensor] = field(default_factory=dict)
    _late: dict[str, LateWeight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        family = self.skeleton.checkpoint.family
        if self.late:
            self._late = {layer: LateWeight(self.module.get_submodule(layer), family.transposed) for layer in family.layers}

    def close(self) -> None:
        """Give the modules back as they were."""
        for layer in self._late.values():
            layer.restore()

    @property
    def name(self) -> str:
        return self.skeleton.checkpoint.block_name(self.index)

    @property
    def module(self) -> nn.Module:
        return self.skeleton.blocks[self.index]

    @property
    def readers(self) -> tuple[Readers, ...]:
        return self.skeleton.checkpoint.family.readers

    def whole(self, layer: str) -> str:
        """The whole name of a layer of the block."""
        return f"{self.name}.{layer}"

    def weight(self, layer: str) -> Tensor:
        """[out, in] float32, before it was rounded."""
        if layer in self._floats:
            return self._floats[layer]
        if layer in self._late:
            return self._late[layer].weight()
        weight: Tensor = self.module.get_submodule(layer).weight  # type: ignore[assignment]
        return weight.t() if self.skeleton.checkpoint.family.transposed else weight

    def view(self, layer: str) -> LayerView:
        """The layer as techniques see it."""
        bias = getattr(self.module.get_submodule(layer), "bias", None)
        return LayerView(self.whole(layer), "Linear", self.weight(layer).contiguous().numpy(), None if bias is None else bias.numpy(),
                         scales=SCALES, either_sign=True)

    def put(self, layer: str, made: Quantised | Coded | Array, activations: int = 0) -> None:
        """The rounded weight in the place of the one before. activations: how the layer reads its inputs from now on (``Layout``)."""
        self.skeleton.round_inputs(self.whole(layer), activations)
        if self.more:
            self._floats[layer] = self.weight(layer)
        self.rounded[self.whole(layer)] = made
        if layer in self._late and isinstance(made, Quantised | Coded):
            self._late[layer].round(made)
        else:
            self._run_with(layer, torch.from_numpy(made.values if isinstance(made, Quantised | Coded) else made.astype("float32")))

    def set_weight(self, layer: str, weight: Tensor) -> None:
        """Other float numbers [out, in] in the place of those before. The layer is stored in float if nothing rounds it."""
        self._floats.pop(layer, None)
        self.rounded.pop(self.whole(layer), None)
        self.skeleton.round_inputs(self.whole(layer), 0)
        name = f"{self.whole(layer)}.weight"
        transposed = self.skeleton.checkpoint.family.transposed
        self.plain[name] = (weight.t() if transposed else weight).to(self.skeleton.checkpoint.dtype).contiguous()
        self._run_with(layer, weight)

    def _run_with(self, layer: str, weight: Tensor) -> None:
        if layer in self._late:
            return self._late[layer].set(weight)
        weight = weight.t().contiguous() if self.skeleton.checkpoint.family.transposed else weight
        self.module.get_submodule(layer).weight = nn.Parameter(weight, requires_grad=False)

    def set_plain(self, name: str, values: Tensor) -> None:
        """Another parameter of the block ("input_layernorm.weight"), rounded to the dtype that it is stored in."""
        whole = f"{self.name}.{name}"
        stored = values.to(self.skeleton.checkpoint.tensor(whole).dtype)
        self.plain[whole] = stored
        module, _, last = name.rpartition(".")
        setattr(self.module.get_submodule(module), last, nn.Parameter(stored.float(), requires_grad=False))

    def run(self, hidden: Tensor) -> Tensor:
        """[n, length, width] what the block makes of hidden states, as it is now."""
        with torch.no_grad():
            return self.skeleton.run(self.index, hidden)

    def computed(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """[n, length, width] what the block would make of hidden states with other weights [out, in]; gradients flow to those."""
        transposed = self.skeleton.checkpoint.family.transposed
        own = {f"{layer}.weight": weight.t() if transposed else weight for layer, weight in weights.items()}
        call = self.skeleton.calls(hidden.shape[1])[self.index]
        found = torch.func.functional_call(self.module, own, (hidden, *call.rest), dict(call.named))
        return found[0] if isinstance(found, tuple) else found

    def inputs(self, layer: str, hidden: Iterable[Tensor], visit: Callable[[Tensor], None]) -> None:
        """Show what a layer reads, [tokens, in], part after part; what lies behind the layer does not run."""
        def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            visit(args[0].reshape(-1, args[0].shape[-1]))
            raise _Enough

        hook = self.module.get_submodule(layer).register_forward_pre_hook(stop)
        try:
            for part in hidden:
                try:
                    self.run(part)
                except _Enough:
                    continue
        finally:
            hook.remove()
