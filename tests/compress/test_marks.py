"""What the techniques must reach on a real network: ResNet-20 on CIFAR-10, 2000 test images."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.compress.apply import apply_recipe
from whet.compress.artifacts import load
from whet.compress.data import Dataset, load_data
from whet.compress.graph import GraphModel
from whet.compress.runtime import outputs_of
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

pytestmark = pytest.mark.slow
VNNI = target("x86-vnni")
ENDS = ("/conv1/Conv", "/linear/Gemm")  # the first and the last layer keep 8 bits, as in BRECQ and QDrop


@pytest.fixture
def folder(assets: Path) -> Path:
    return assets / "resnet20_cifar10"


@cache
def float_accuracy(folder: Path) -> float:
    return accuracy(folder, load(folder / "model.onnx"))


def accuracy(folder: Path, model: GraphModel) -> float:
    data = load_data(folder / "eval.npz", load(folder / "model.onnx").inputs)
    assert data.labels is not None
    (scores,) = outputs_of(model, data).values()
    return float((scores.argmax(1) == data.labels).mean())


def made(folder: Path, data: Dataset, *steps: tuple[str, dict[str, Any]] | Step) -> GraphModel:
    recipe = Recipe(tuple(step if isinstance(step, Step) else Step(step[0], options=step[1]) for step in steps))
    return apply_recipe(load(folder / "model.onnx"), recipe, VNNI, calibration=data)


def calibration(folder: Path) -> Dataset:
    return load_data(folder / "calib.npz", load(folder / "model.onnx").inputs)


def training_images(folder: Path, count: int) -> Dataset:
    """As the folder's README says."""
    images = np.load(folder / "train.npz")["x"][:count].astype(np.float32) / 255
    normal = (images - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return Dataset.of({"input": np.ascontiguousarray(normal.transpose(0, 3, 1, 2))})


def test_eight_bits_lose_a_tenth_of_a_point_at_most(folder: Path) -> None:
    assert accuracy(folder, made(folder, calibration(folder), ("static", {}))) >= float_accuracy(folder) - 0.001


def test_weights_of_four_bits_lose_half_a_point_at_most_in_a_seventh_of_the_size(folder: Path) -> None:
    model = made(folder, calibration(folder), ("gptq", {"bits": 4}), ("static", {}))
    assert accuracy(folder, model) >= float_accuracy(folder) - 0.005
    assert len(model.content) < (folder / "model.onnx").stat().st_size / 6.5
    plain = made(folder, calibration(folder), ("static", {"bits": 4}))
    assert accuracy(folder, plain) < float_accuracy(folder) - 0.01  # what plain rounding loses


def test_weights_and_activations_of_four_bits_lose_two_and_a_half_points_at_most(folder: Path) -> None:
    model = made(
        folder, training_images(folder, 512),
        Step("reconstruct", ("*",), ENDS, {"bits": 4, "activation_bits": 4, "iterations": 100, "samples": 512}),
        Step("static", ("*",), ENDS, {"activation_bits": 4}), Step("static", ENDS),
    )  # fmt: skip
    assert accuracy(folder, model) >= float_accuracy(folder) - 0.025
    rounded = Step("static", ("*",), ENDS, {"bits": 4, "activation_bits": 4})
    plain = made(folder, training_images(folder, 512), rounded, Step("static", ENDS))
    assert accuracy(folder, plain) < float_accuracy(folder) - 0.05
