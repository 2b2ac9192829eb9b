"""The main job on real data, from nothing: train a small network on handwritten digits, then make it fit.

    python -m whet.demo [--out demo]

The data is scikit-learn's copy of the UCI handwritten digits (1797 images of 8x8), which comes inside that package. Writes
``model.onnx``, ``calib.npz`` and ``eval.npz`` into the folder, so that every command of the docs can be tried on them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

EPOCHS, BATCH, SEED = 12, 64, 0
TRAINING, CALIBRATION = 900, 200


def main(arguments: list[str] | None = None) -> int:
    """Train, export, optimise. Gives back the exit code of the last step."""
    parser = argparse.ArgumentParser(prog="python -m whet.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the model, the data and the report (default: demo)")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    print(f"Training a small residual network on scikit-learn's handwritten digits ({EPOCHS} epochs) ...", flush=True)
    accuracy = prepare(out)
    print(f"Float accuracy on {1797 - TRAINING} images that were not trained on: {accuracy:.4f}\n")
    command = ["optimize", str(out / "model.onnx"), "--data", str(out / "eval.npz"), "--calibration", str(out / "calib.npz"),
               "--metric", "accuracy", "--max-drop", "0.01", "--target", "host", "-o", str(out / "optimized")]
    print(f"$ whet {shlex.join(command)}", flush=True)
    from whet.cli import main as whet_main

    return int(whet_main(command) or 0)


def prepare(out: Path) -> float:
    """Write model.onnx, calib.npz and eval.npz into ``out``; gives back the float accuracy on eval.npz."""
    import torch
    from sklearn.datasets import load_digits

    import whet

    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype(np.float32)  # [1797, 1, 8, 8], 0..1
    order = np.random.default_rng(SEED).permutation(len(images))
    images, labels = images[order], digits.target[order].astype(np.int64)
    np.savez(out / "calib.npz", image=images[:CALIBRATION])
    np.savez(out / "eval.npz", image=images[TRAINING:], labels=labels[TRAINING:])
    model = train(torch.from_numpy(images[:TRAINING]), torch.from_numpy(labels[:TRAINING]))
    whet.export(model, out / "model.onnx", example_inputs=(torch.from_numpy(images[:2]),))
    with torch.no_grad():
        found = model(torch.from_numpy(images[TRAINING:])).argmax(1).numpy()
    return float((found == labels[TRAINING:]).mean())


def train(images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    """A network of 4 convolutions and a residual, trained with Adam; a few seconds on two cores. images: [n, 1, 8, 8]."""
    import torch

    torch.manual_seed(SEED)
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=EPOCHS * -(-len(images) // BATCH))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def network() -> torch.nn.Module:
    """[n, 1, 8, 8] -> [n, 10]."""
    import torch
    from torch import nn

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
            self.wide = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
            self.residual = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
            self.deep = nn.Sequential(nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU())
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            features = self.wide(self.stem(image))
            return self.head(self.deep(torch.relu(features + self.residual(features))))

    return Digits()


if __name__ == "__main__":
    sys.exit(main())
