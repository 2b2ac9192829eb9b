"""The mirror of every sample model against onnxruntime, and how fast it trains."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.compress.mirrored import answer, one_thread, ran
from torch import Tensor, nn
from torch.nn import functional

import whet
from whet.compress.graph import GraphModel
from whet.compress.mirror import Mirror, mirror

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
MODELS = (
    "cwru_bearing/model", "dtln/model_1", "dtln/model_2", "fsdd_digits/model", "kws_mlperf_tiny/model", "resnet20_cifar10/model",
    "resnet20_cifar10/resnet56", "resnet8_mlperf_tiny/model", "sisfall_falls/model", "silero_vad/model",
)


def test_no_sample_model_is_forgotten(assets: Path) -> None:
    assert {str(path.relative_to(assets)).removesuffix(".onnx") for path in assets.rglob("*.onnx")} == {*MODELS}


def model_of(assets: Path, name: str) -> GraphModel:
    path = assets / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return whet.load(path)


def feeds_for(model: GraphModel, batch: int = 3) -> dict[str, np.ndarray]:
    """Standard normal inputs; silero's are 36 ms of sound at 16 kHz."""
    random, feeds = np.random.default_rng(0), {}
    for spec in model.inputs:
        shape = [size if isinstance(size, int) else batch for size in spec.shape]
        if [spec.name, len(shape)] == ["input", 2]:
            shape[1] = 576
        feeds[spec.name] = random.standard_normal(shape).astype(np.float32) if "float" in spec.dtype else np.full(shape, 16000, spec.dtype)
    return feeds


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "silero_vad/model")) for name in MODELS])
def test_it_computes_what_onnxruntime_computes(assets: Path, name: str) -> None:
    model = model_of(assets, name)
    module, feeds = mirror(model), feeds_for(model)
    for found, wanted in zip(ran(module, feeds), answer(model, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert module.written_back(model).content == model.content


@pytest.mark.parametrize("name", ["resnet8_mlperf_tiny/model", "kws_mlperf_tiny/model", "dtln/model_1", "dtln/model_2"])
def test_gradients_reach_every_weight(assets: Path, name: str) -> None:
    module, feeds = mirror(model := model_of(assets, name)), feeds_for(model)
    sum(y.square().sum() for y in module(*map(torch.from_numpy, feeds.values()))).backward()
    missing = [name for name, value in module.constants().items() if value.requires_grad and (value.grad is None or not value.grad.any())]
    assert not missing


@pytest.mark.slow
def test_gradients_reach_every_weight_of_the_branch_that_runs(assets: Path) -> None:
    """silero_vad holds two networks, one for 8 kHz; neither its filter bank nor its weights are out of reach."""
    module, feeds = mirror(model := model_of(assets, "silero_vad/model")), feeds_for(model)
    sum(y.square().sum() for y in module(*map(torch.from_numpy, feeds.values()))).backward()
    reached = [value.grad is not None for value in module.constants().values() if value.requires_grad]
    assert len(reached) == 28
    assert sum(reached) == 14


# -- speed


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inside, out, 3, stride, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Identity() if inside == out else nn.Conv2d(inside, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


def resnet20() -> nn.Module:
    """He et al. 2016, section 4.2, with the batch norms folded as in the graphs that Whet works on."""
    widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    blocks = [Block(*each) for each in widths]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def _seconds(module: nn.Module, x: Tensor) -> float:
    """Of this process on one thread: what others do on the machine counts for little."""
    start = time.process_time()
    found = module(x)
    (found[0] if isinstance(module, Mirror) else found).square().sum().backward()
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize(("batch", "rounds"), [(1, 60), (32, 12)])
def test_it_trains_as_fast_as_the_same_model_written_by_hand(batch: int, rounds: int) -> None:
    written, x = resnet20(), torch.randn(batch, 3, 32, 32)
    module = mirror(whet.load(written, example_inputs=(x,)))
    torch.testing.assert_close(module(x)[0], written(x), rtol=1e-4, atol=1e-5)
    times = [(_seconds(module, x), _seconds(written, x)) for _ in range(rounds)]
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    print(f"batch {batch}: {1000 * ours:.1f} ms, {ours / theirs:.2f} of the time by hand")
    assert ours / theirs < 1.5
