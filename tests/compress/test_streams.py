"""The samples' way through a graph: what waits lies in memory or in files, nothing else is there for all samples, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.test_killed_runs import PATH
from tests.compress.operators_with_weights import CASES
from tests.compress.small_graphs import Sketch, noise_ratio, samples, weights_of

from whet.compress.apply import apply_recipe
from whet.compress.graph import GraphModel
from whet.compress.layer_products import product_of
from whet.compress.source import read_onnx_bytes
from whet.compress.walks import grams, held, scratch, stream, tensors
from whet.compress.walks.held import Held
from whet.compress.walks.scratch import Samples, Scratch
from whet.core.errors import Refused, Unsupported
from whet.core.recipe import Recipe, Step
from whet.device.targets import target

VNNI = target("x86-vnni")
DATA = samples({"x": (3, 8, 8)}, 20)
RECIPES = {
    "gptq": (("gptq", {}),),
    "adaround": (("adaround", {"iterations": 20}),),
    "bias_correct": (("static", {}), ("bias_correct", {})),
    "clip": (("clip", {}), ("static", {})),
    "reconstruct": (("reconstruct", {"iterations": 20}), ("static", {})),
}


def residual_net() -> GraphModel:
    """Two tensors wait at its middle layer."""
    g = Sketch()
    x = g.node("Relu", g.conv(g.input("x", ["N", 3, 8, 8]), (3, 8), name="first"))
    y = g.node("Relu", g.conv(x, (8, 8), name="middle"))
    y = g.node("Add", x, g.conv(y, (8, 8), name="behind"))
    g.output(g.gemm(g.node("Flatten", g.node("GlobalAveragePool", y)), 8, 6, name="last"))
    return g.model()


def made_by(name: str) -> GraphModel:
    steps = tuple(Step(each, options=options) for each, options in RECIPES[name])
    return apply_recipe(residual_net(), Recipe(steps), VNNI, calibration=DATA)


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples at a time through a stream, whose first layer gives 8 x 64 numbers each and whose residual waits."""
    monkeypatch.setattr(stream, "LARGEST_BATCH", 3)


def all_in_files(monkeypatch: pytest.MonkeyPatch, but: int = 0) -> None:
    """But for so many bytes."""
    monkeypatch.setattr(held, "MOST_BYTES", but)
    monkeypatch.setattr(scratch, "MOST_BYTES", but)
    monkeypatch.setattr(tensors, "EXACT_BYTES", but)


# -- what waits ----------------------------------------------------------------------------------------------------------------


def test_beyond_the_bound_tensors_lie_in_files_and_come_back_as_they_were() -> None:
    shelf = Held(most_bytes=4 * 10)
    given = {(batch, name): torch.randn(2, 5).to(kind) for batch in range(3) for name, kind in (("a", torch.float32), ("b", torch.int64))}
    for (batch, name), values in given.items():
        shelf.put(batch, name, values)
    assert shelf.bytes == 40
    for (batch, name), values in given.items():
        found = shelf.get(batch, name)
        assert found.dtype == values.dtype
        assert torch.equal(found, values)
    shelf.put(0, "a", torch.ones(3))  # in the place of the one in memory
    assert torch.equal(shelf.get(0, "a"), torch.ones(3))
    assert shelf.bytes == 12
    with pytest.raises(KeyError):
        shelf.get(7, "a")
    shelf.close()
    assert shelf.bytes == 0


def test_a_file_is_gone_with_its_last_tensor() -> None:
    shelf, before = Held(most_bytes=0), open_files()
    for batch in range(3):
        shelf.put(batch, "a", torch.ones(4))
        shelf.put(batch, "b", torch.ones(4))
    assert len(open_files()) == len(before) + 2
    for batch in range(3):
        shelf.drop(batch, "a")
    assert len(open_files()) == len(before) + 1
    shelf.close()
    assert open_files() == before


def test_a_part_does_not_keep_the_whole_in_memory() -> None:
    shelf, whole = Held(), torch.randn(100, 100)
    shelf.put(0, "part", whole[:1])
    assert shelf.get(0, "part").untyped_storage().nbytes() == 400


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    for put in (lambda: Held(most_bytes=0).put(0, "a", torch.ones(3)), lambda: Samples(most_bytes=0).append(torch.ones(3))):
        with pytest.raises(Refused, match="TMPDIR"):
            put()


@pytest.mark.parametrize("most_bytes", [0, 100, 1 << 20])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_samples_come_by_their_numbers(most_bytes: int, kind: torch.dtype) -> None:
    samples, given = Samples(most_bytes), (100 * torch.randn(23, 2, 5)).to(kind)
    before = len(open_files())
    for part in (given[:10], given[10:11], given[11:]):
        samples.append(part)
    assert len(samples) == 23
    assert len(open_files()) == before + (most_bytes < given.nbytes)
    for index in (torch.tensor([3, 22, 0, 3]), slice(4, 15), slice(None), torch.tensor([], dtype=torch.int64)):
        found = samples[index]
        assert found.dtype == kind
        assert torch.equal(found, given[index])
    samples.close()
    assert len(open_files()) == before


def test_a_part_of_a_batch_does_not_keep_the_batch() -> None:
    samples = Samples()
    samples.append(torch.randn(100, 100)[:1])
    assert samples[:].untyped_storage().nbytes() == 400


# -- techniques ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_files_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_batches(monkeypatch)
    wanted = made_by(name).content
    written: list[str] = []
    append = Scratch.append

    def noted(self: Scratch, values: torch.Tensor) -> int:
        written.append(name)
        return append(self, values)

    all_in_files(monkeypatch, 5000)
    monkeypatch.setattr(Scratch, "append", noted)
    assert made_by(name).content == wanted
    assert len(written) >= 4


@pytest.mark.parametrize("name", ["gptq", "bias_correct"])
def test_the_size_of_batches_changes_next_to_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = weights_of(made_by(name))
    small_batches(monkeypatch)
    found = weights_of(made_by(name))
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        if values.dtype == np.float32 and values.size:
            np.testing.assert_allclose(found[key], values, rtol=1e-3, atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_left_on_disk(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    all_in_files(monkeypatch)
    made_by(name)
    before = open_files()
    made_by(name)
    assert open_files() == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gptq", "clip"])
def test_nor_is_where_it_fails(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    all_in_files(monkeypatch)
    made_by(name)
    before = open_files()
    place, wrong = {"gptq": (grams, "GramView"), "clip": (tensors, "TensorView")}[name]
    calls: list[None] = []

    def second_fails(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise Unsupported("go on", found="enough")
        return real(*arguments)

    real = getattr(place, wrong)
    monkeypatch.setattr(place, wrong, second_fails)
    with pytest.raises(Unsupported, match="enough"):
        made_by(name)
    assert open_files() == before
    assert not list(tmp_path.iterdir())


# -- the stream ----------------------------------------------------------------------------------------------------------------


def test_no_more_is_held_than_is_still_read() -> None:
    model = residual_net().folded()
    with ExitStack() as stack:
        found = stream.stream(model, stream.batches_of(model, DATA), stack)
        found.run_until("middle")
        assert found.held.bytes == 20 * 8 * 64 * 4  # what the first layer gave, which is read twice
        found.run_until("behind")
        assert found.held.bytes == 2 * 20 * 8 * 64 * 4
        found.run_until("last")
        assert found.held.bytes == 20 * 8 * 4
        found.go(len(found.steps))
        assert found.held.bytes == 20 * 6 * 4
        assert not found.constants


def test_an_operator_runs_once_on_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    convolve = torch.nn.functional.conv2d

    def counted(x: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(x.shape)
        return convolve(x, *more)

    small_batches(monkeypatch)
    monkeypatch.setattr("whet.compress.mirror.convolution._FORWARD", {2: counted})
    made_by("bias_correct")
    layers, batches, looked = 3, 7, 1  # of 20 samples three at a time; before it all two go through to see how large they are
    assert len(seen) == layers * (2 * batches + looked)


def test_batches_hold_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual_net().folded()
    monkeypatch.setattr(stream, "BATCH_BYTES", 5 * 2 * 8 * 64 * 4)  # two tensors are alive behind most operators
    assert [len(batch["x"]) for batch in stream.batches_of(model, DATA)] == [5, 5, 5, 5]
    monkeypatch.setattr(stream, "BATCH_BYTES", 1)
    assert len(stream.batches_of(model, DATA)) == 20
    monkeypatch.undo()
    assert [len(batch["x"]) for batch in stream.batches_of(model, DATA)] == [20]


def test_a_graph_that_takes_one_sample_gets_them_one_by_one() -> None:
    g = Sketch()
    y = g.node("Relu", g.gemm(g.input("x", ["N", 12]), 12, 12, name="first"))
    g.output(g.gemm(g.node("Reshape", y, g.constant([1, -1], np.int64)), 12, 6, name="last"))
    g_sum = Sketch()
    x = g_sum.input("x", ["N", 12])
    g_sum.output(g_sum.gemm(g_sum.node("ReduceMean", g_sum.gemm(x, 12, 12, name="first"), axes=[0], keepdims=1), 12, 6, name="last"))
    for sketch in (g, g_sum):
        batches = stream.batches_of(sketch.model().folded(), samples({"x": (12,)}, 4))
        assert [len(batch["x"]) for batch in batches] == [1, 1, 1, 1]


# -- the moments ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Conv 1-D", "Conv 2-D", "Conv 3-D", "Conv depthwise", "Conv grouped", "Conv strided and dilated", "Gemm",
                                  "MatMul of 3 dimensions"])
def test_columns_are_the_vectors_turned(name: str) -> None:
    case = CASES[name]()
    node = next(node for node in case.model().folded().ir.graph if product_of(node) is not None)
    product = product_of(node)
    assert product is not None
    x = torch.as_tensor(next(case.data.batches(5))["x"])
    index = torch.randperm(product.count(x), generator=torch.Generator().manual_seed(0))[:17]
    found = {tuple(vector) for vector in product.columns(x, index).flatten(0, 1).t().tolist()}
    assert found == {tuple(vector) for vector in product.chosen(x, index).flatten(1).tolist()}


@pytest.mark.parametrize("name", ["Conv 2-D", "Conv grouped"])
def test_moments_summed_in_single_precision_are_added_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    product = next(made for node in case.model().folded().ir.graph if (made := product_of(node)) is not None)
    batches = [torch.as_tensor(batch["x"]) for batch in case.data.batches(3)]
    wanted, rows = grams.gram_of(product, batches)
    monkeypatch.setattr(grams, "AT_ONCE", 10)
    monkeypatch.setattr(grams, "SINGLE", 20)
    found, _ = grams.gram_of(product, batches)
    assert noise_ratio(found, wanted) < 1e-5
    vectors = torch.cat([product.chosen(x, torch.arange(product.count(x))) for x in batches]).double().numpy()
    np.testing.assert_allclose(found, np.einsum("ngi,ngj->gij", vectors, vectors) / rows, rtol=1e-4, atol=1e-5)


def test_moments_that_nobody_looks_at_are_not_computed() -> None:
    case = CASES["Gemm"]()
    product = next(made for node in case.model().folded().ir.graph if (made := product_of(node)) is not None)
    batches = [torch.as_tensor(batch["x"]) for batch in case.data.batches(3)]
    full, rows = grams.gram_of(product, batches)
    width = full.shape[1]
    assert grams.gram_of(product, batches, rows / width)[0].shape == (1, width, width)
    assert grams.gram_of(product, batches, 1.01 * rows / width)[0].shape == (1, 0, 0)
    assert grams.gram_of(product, batches, 1.01 * rows / width)[1] == rows


# -- memory --------------------------------------------------------------------------------------------------------------------


def test_a_models_numbers_are_in_memory_once() -> None:
    model = read_onnx_bytes(residual_net().content)
    found = [value.const_value for value in model.graph.initializers.values()]
    assert len(found) > 5
    assert all(np.shares_memory(tensor.numpy(), tensor.numpy()) for tensor in found if tensor is not None)


RUN = """
import sys, numpy as np, torch, whet, onnxruntime
from whet.compress.data import Dataset
from whet.compress.apply import apply_recipe
from whet.core.recipe import Recipe, Step
from whet.device.memory import _reset_peak, _status_bytes
from whet.device.targets import target
torch.set_num_threads(1)
model = whet.load(sys.argv[1])
images = np.random.default_rng(0).standard_normal((int(sys.argv[3]), 3, 64, 64)).astype(np.float32)
recipe = Recipe(tuple(Step(name) for name in sys.argv[2].split("+")))
apply_recipe(model, recipe, target("x86-vnni"), calibration=Dataset.of({"x": images[:4]}))  # what libraries get ready once
before = _status_bytes("VmRSS")
_reset_peak()
apply_recipe(model, recipe, target("x86-vnni"), calibration=Dataset.of({"x": images}))
print(_status_bytes("VmHWM") - before)
"""


# glibc gives freed memory back at once, so that the peak is what was held: else freed blocks stay by chance, 40 to 180 MB of them.
GIVEN_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("name", ["gptq", "static+bias_correct"])
def test_the_peak_does_not_grow_with_the_samples(name: str, tmp_path: Path) -> None:
    g = Sketch()
    x = g.node("Relu", g.conv(g.input("x", ["N", 3, 64, 64]), (3, 48)))
    for _ in range(3):
        x = g.node("Add", x, g.node("Relu", g.conv(x, (48, 48))))
    g.output(g.gemm(g.node("Flatten", g.node("GlobalAveragePool", x)), 48, 6))
    g.model().save(tmp_path / "wide.onnx")
    peaks = []
    for count in (32, 128):  # 0.8 MB for each sample and tensor; two of them wait, in two streams once
        done = subprocess.run([sys.executable, "-c", RUN, tmp_path / "wide.onnx", name, str(count)], capture_output=True, text=True,
                              check=False, env={**os.environ, **GIVEN_BACK, "PYTHONPATH": PATH})
        assert done.returncode == 0, done.stderr[-2000:]
        peaks.append(int(done.stdout.splitlines()[-1]) / 1e6)
    assert peaks[1] < peaks[0] + 15, f"{peaks} MB"
    assert peaks[1] < 120, f"{peaks} MB"


def open_files() -> list[str]:
    """What this process has open, but for sockets and pipes."""
    found = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
    return sorted(name for name in found if "whet-" in name or "(deleted)" in name)
