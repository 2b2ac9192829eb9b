"""A small transformer encoder, trained from scratch in a few seconds on a task that needs attention: the first
token says at which place the answer stands."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
TOKENS, LENGTH, WIDTH, HEADS = 10, 16, 64, 4


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, as most encoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # [n, length, width]
        y = self.before_attention(x)
        q, k, v = (part(y).view(*y.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(y.shape))
        return x + self.down(nn.functional.gelu(self.up(self.before_feed(x))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.5)
        self.layers = nn.Sequential(Layer(), Layer())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, ids: Tensor) -> Tensor:  # [n, length] -> [n, tokens]
        return self.head(self.norm(self.layers(self.tokens(ids) + self.places)).mean(dim=1))


def sequences(count: int, seed: int) -> tuple[Array, Array]:
    """ids int64 [count, length], and the token at the place that the first one names [count]."""
    ids = np.random.default_rng(seed).integers(0, TOKENS, (count, LENGTH))
    return ids, ids[np.arange(count), 1 + ids[:, 0]]


def trained(steps: int = 450) -> Encoder:
    """About 5 seconds on one core; two threads would wait for each other where others want the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _trained(steps)
    finally:
        torch.set_num_threads(threads)


def _trained(steps: int) -> Encoder:
    torch.manual_seed(0)
    model = Encoder()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        ids, labels = (torch.as_tensor(part) for part in sequences(64, step + 1000))
        loss = nn.functional.cross_entropy(model(ids), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rate.step()
    return model.eval()


def with_outliers(model: Encoder, factor: float, channels: tuple[int, ...] = (3, 17, 40)) -> None:
    """Multiply a few channels of every LayerNorm, and take the factor back in the weights behind: the function stays as it is."""
    with torch.no_grad():
        for layer in model.layers:
            assert isinstance(layer, Layer)
            for norm, readers in ((layer.before_attention, (layer.query, layer.key, layer.value)), (layer.before_feed, (layer.up,))):
                for channel in channels:
                    norm.weight[channel] *= factor
                    norm.bias[channel] *= factor
                    for reader in readers:
                        reader.weight[:, channel] /= factor


def exported(model: Encoder) -> onnx.ModelProto:
    """By torch's exporter, with any number of samples."""
    ids = torch.as_tensor(sequences(2, 0)[0])
    stored = io.BytesIO()
    sizes = ({0: torch.export.Dim("n")},)
    program = torch.onnx.export(model, (ids,), dynamo=True, dynamic_shapes=sizes, input_names=["ids"], verbose=False)
    assert program is not None
    program.save(stored)
    return onnx.load_from_string(stored.getvalue())
