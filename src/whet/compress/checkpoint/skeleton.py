"""The model as transformers builds it, without its weights: they are put in block by block, and taken out again.

How a block is called (masks, positions, which rotary table) is the business of the model's own code. So the model runs once with its blocks
replaced by recorders, and every block is called with what its recorder was given; the model runs again for its head, with the last block
replaced by what came out of the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.fake import by_token
from whet.core.errors import Refused


@dataclass(frozen=True, eq=False)
class Call:
    """What a block is called with beside the hidden states, for a batch of one sequence."""

    rest: tuple[Any, ...]
    named: Mapping[str, Any]


class Skeleton:
    """The module of a checkpoint with all parameters on torch's meta device; blocks are filled by ``block`` and emptied by ``empty``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = _built(checkpoint)
        check(self.model, checkpoint)
        self.blocks: nn.ModuleList = self.model.get_submodule(checkpoint.family.blocks)  # type: ignore[assignment]
        self._calls: dict[int, list[Call]] = {}
        self._rounding: dict[str, RemovableHandle] = {}

    def embed(self, tokens: Tensor, table: Checkpoint | None = None) -> Tensor:
        """[n, length, width] float32: what enters the first block, of tokens [n, length]. table: a checkpoint that holds another table."""
        recorders = self._run(tokens, table)
        return recorders[0].hidden

    def calls(self, length: int) -> list[Call]:
        """How each block is called for sequences of that length."""
        if length not in self._calls:
            recorders = self._run(torch.zeros((1, length), dtype=torch.int64))
            self._calls[length] = [Call(each.rest, each.named) for each in recorders]
        return self._calls[length]

    def block(self, index: int, *, late: bool = False) -> nn.Module:
        """A block with its weights in float32; with ``late`` those of its linear layers as they are stored, where they are plain."""
        block = self.blocks[index]
        prefix = f"{self.checkpoint.block_name(index)}."
        names = [name for name, _ in self.model.named_parameters() if name.startswith(prefix)]
        stored = {f"{layer}.weight" for layer in self.checkpoint.block_layers(index) if late and layer not in self.checkpoint.layouts}
        weights = self._weights([name for name in names if name not in stored], prefix)
        weights |= {name.removeprefix(prefix): self.checkpoint.tensor(name) for name in names if name in stored}
        block.load_state_dict(weights, assign=True)
        self._round_inputs_of(index)
        return block.eval()

    def _round_inputs_of(self, index: int) -> None:
        """Have the layers of a block read their inputs as they are stored to."""
        for layer in self.checkpoint.block_layers(index):
            layout = self.checkpoint.layouts.get(layer)
            self.round_inputs(layer, layout.activations if layout else 0)

    def round_inputs(self, layer: str, activations: int) -> None:
        """From now on a linear layer reads its inputs as a ``Layout`` with these activations says: int8 for each token, or as they come."""
        if layer in self._rounding:
            self._rounding.pop(layer).remove()
        if activations:
            self._rounding[layer] = self.model.get_submodule(layer).register_forward_pre_hook(_by_token)

    def fill(self) -> nn.Module:
        """The model with all of its weights in float32, 4 bytes a parameter."""
        embedding, head = (f"{name}.weight" for name in (self.checkpoint.family.embedding, self.checkpoint.family.head))
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        weights = self._weights([name for name in names if not (self.checkpoint.tied and name == head)], "")
        if self.checkpoint.tied:
            weights[head] = weights[embedding]
        for name, weight in weights.items():
            _set(self.model, name, weight)
        for index in range(self.checkpoint.block_count):
            self._round_inputs_of(index)
        return self.model

    def empty(self, index: int) -> None:
        """Take the weights of a block out again."""
        self.blocks[index].to("meta")
        for layer in self.checkpoint.block_layers(index):
            self.round_inputs(layer, 0)
        self.checkpoint.forget(self.checkpoint.block_name(index))

    def run(self, index: int, hidden: Tensor) -> Tensor:
        """[n, length, width] what a filled block makes of hidden states."""
        call = self.calls(hidden.shape[1])[index]
        found = self.blocks[index](hidden, *call.rest, **call.named)
        return found[0] if isinstance(found, tuple) else found

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function that makes logits [n, length, vocabulary] float32 of what left the last block; the hidden states behind the last norm
        for an encoder. The head's weights are in memory meanwhile.
        """
        with self._filled_outside(self._head()):
            yield self._behind_blocks

    def _behind_blocks(self, hidden: Tensor) -> Tensor:
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64)
        with self._replaced([_Given(hidden) for _ in range(len(self.blocks))]):
            found = self.model(tokens) if self.checkpoint.family.encoder else self.model(tokens, use_cache=False)
        return found.last_hidden_state if self.checkpoint.family.encoder else found.logits

    def _run(self, tokens: Tensor, table: Checkpoint | None = None) -> list[_Recorder]:
        """The model on tokens with recorders in the place of its blocks. Only the rows of the table that are used are read."""
        recorders = [_Recorder() for _ in self.blocks]
        used, places = tokens.unique(return_inverse=True)
        embedding = self.checkpoint.family.embedding
        rows = {f"{embedding}.weight": (table or self.checkpoint).rows(embedding, used)}
        body: nn.Module = self.model.base_model  # type: ignore[assignment]
        with torch.no_grad(), self._replaced(recorders), self._filled_outside(rows):
            body(places) if self.checkpoint.family.encoder else body(places, use_cache=False)
        return recorders

    @contextmanager
    def _replaced(self, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
        """Other modules in the place of the blocks."""
        path, _, last = self.checkpoint.family.blocks.rpartition(".")
        parent = self.model.get_submodule(path)
        for stand_in, block in zip(stand_ins, self.blocks, strict=True):
            for name in ("attention_type", "is_sliding", "layer_type"):  # what some models ask of their blocks
                if hasattr(block, name):
                    setattr(stand_in, name, getattr(block, name))
        setattr(parent, last, nn.ModuleList(stand_ins))
        try:
            yield
        finally:
            setattr(parent, last, self.blocks)

    @contextmanager
    def _filled_outside(self, tables: Mapping[str, Tensor]) -> Iterator[None]:
        """The weights outside the blocks in their places: ``tables``, by name, and all but embedding and head from the files."""
        family = self.checkpoint.family
        large = (f"{family.blocks}.", f"{family.embedding}.", *((f"{family.head}.",) if family.head else ()))
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        weights = {**self._weights([name for name in names if not name.startswith(large)], ""), **tables}
        for name, weight in weights.items():
            _set(self.model, name, weight)
        try:
            yield
        finally:
            for name, weight in weights.items():
                _set(self.model, name, torch.empty_like(weight, device="meta"))

    def _head(self) -> dict[str, Tensor]:
        """The head, and a table of one row, which is looked up for nothing."""
        checkpoint, family = self.checkpoint, self.checkpoint.family
        found = {f"{family.embedding}.weight": torch.zeros(1, checkpoint.size(family.embedding)[1])}
        if family.encoder:
            return found
        found[f"{family.head}.weight"] = checkpoint.weight(family.embedding if checkpoint.tied else family.head)
        bias = f"{family.head}.bias"
        return found | ({bias: checkpoint.tensor(bias).float()} if bias in checkpoint.entries else {})

    def _weights(self, names: Sequence[str], prefix: str) -> dict[str, Tensor]:
        """The parameters as float32, in the shapes of the modules, by their names behind ``prefix``."""
        found = {}
        for name in names:
            layer = name.removesuffix(".weight")
            if layer in self.checkpoint.layouts:
                weight = self.checkpoint.weight(layer)
                found[name.removeprefix(prefix)] = weight.t().contiguous() if self.checkpoint.is_transposed(layer) else weight
            else:
                found[name.removeprefix(prefix)] = self.checkpoint.tensor(name).float()
        return found


class _Recorder(nn.Module):
    """Stands where a block stands, lets the hidden states pass, and keeps what it was called with."""

    def forward(self, hidden: Tensor, *rest: Any, **named: Any) -> Tensor:
        self.hidden, self.rest, self.named = hidden, rest, named
        return hidden


class _Given(nn.Module):
    """Stands where a block stands and gives what it was told to give."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, hidden: Tensor, *rest: Any, **named: Any) -> Tensor:
        return self._hidden


def _by_token(module: nn.Module, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (by_token(read[0]),)


def check(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raises Refused where config.json and the tensors contradict each other."""
    tied = f"{checkpoint.family.head}.weight"
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name == tied and checkpoint.tied:
            continue
        layer = name.removesuffix(".weight")
        if layer in checkpoint.layouts:
            rows, columns = checkpoint.size(layer)
            found: tuple[int, ...] | None = (columns, rows) if checkpoint.is_transposed(layer) else (rows, columns)
        else:
            found = checkpoint.entries[name][1].shape if name in checkpoint.entries else None
        if found != tuple(parameter.shape):
            raise Refused(f"open {checkpoint.folder}", do="use the config.json of these files",
                          found=f"{name} {'missing' if found is None else list(found)}, and config.json asks for {list(parameter.shape)}")


def settings_of(checkpoint: Checkpoint) -> Any:
    """config.json as transformers reads it. Raises Refused where it cannot."""
    from transformers import AutoConfig

    said = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
    with _said_of_config(checkpoint):
        return AutoConfig.for_model(**said)


@contextmanager
def _said_of_config(checkpoint: Checkpoint) -> Iterator[None]:
    """What transformers raises at a config is of many kinds (KeyError for an unknown activation), and no fault of ours."""
    try:
        yield
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise Refused(f"open {checkpoint.folder}", found=f"a config.json that transformers makes no model of ({told})",
                      do="use the config.json of these files") from error


def _built(checkpoint: Checkpoint) -> nn.Module:
    """The model of config.json with parameters on the meta device and buffers (tables of positions) as they are."""
    from transformers import AutoModel, AutoModelForCausalLM

    config = settings_of(checkpoint)
    encoder = checkpoint.family.encoder
    kind = AutoModel if encoder else AutoModelForCausalLM
    # What pools the first token stands behind the states that are looked at here, and many encoders' files lack it.
    options = {"add_pooling_layer": False} if encoder else {}
    with _parameters_on_meta(), _said_of_config(checkpoint):
        model = kind.from_config(config, dtype=torch.float32, **options)
    return model.eval().requires_grad_(False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside have parameters without memory. torch's own meta device takes the buffers too, and a rotary table is one that no
    file brings back.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False))

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _set(model: nn.Module, name: str, weight: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, nn.Parameter(weight, requires_grad=False))
