"""A ResNet-50-shaped graph with random weights and images to calibrate it on: for time and memory, not for accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import whet

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride


class Bottleneck(nn.Module):
    """He et al. 2016, "Deep Residual Learning for Image Recognition", figure 5 (right)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.path = nn.Sequential(
            *convolution(channels, width, 1), nn.ReLU(), *convolution(width, width, 3, stride), nn.ReLU(), *convolution(width, out, 1))
        self.shortcut = nn.Sequential(*convolution(channels, out, 1, stride)) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.path(x) + self.shortcut(x))


class ResNet50(nn.Module):
    """[n, 3, 224, 224] -> [n, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for width, blocks, stride in STAGES:
            for at in range(blocks):
                layers.append(Bottleneck(channels, width, stride if at == 0 else 1))
                channels = 4 * width
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(channels, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.layers(image), 1).flatten(1))


def convolution(channels: int, out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)


def prepare(folder: Path, images: int) -> tuple[Path, Path]:
    """The model and its calibration images."""
    torch.manual_seed(0)
    model = ResNet50()
    with torch.no_grad():
        for _ in range(3):  # batch norms that have seen something, so that activations stay in a sensible range
            model(torch.randn(4, 3, 224, 224))
    path = whet.export(model.eval(), folder / "resnet50.onnx", example_inputs=(torch.randn(2, 3, 224, 224),))
    noise = np.random.default_rng(0).standard_normal((images, 3, 224, 224), dtype=np.float32)
    np.savez(folder / "calib.npz", image=noise)
    return path, folder / "calib.npz"

