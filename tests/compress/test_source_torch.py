"""Exporting PyTorch modules, importing them by name, and the one door for all sources."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tests.compress.source_models import relu, run
from torch import nn

from whet.compress.source import from_torch, import_callable, read_model
from whet.compress.source.torch_import import is_reference
from whet.core.errors import Refused, Unsupported


class Pooled(nn.Module):
    """Two inputs, dropout, both spellings of global average pooling, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.norm(self.conv(image)))
        return {"logits": self.fc(self.drop(self.pool(x).flatten(1))) * scale, "mean": x.mean([2, 3])}


class Stateful(nn.Module):
    """The state has its batch in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return y, h, c


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(1)


class Choosy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 3, 4) * 2


def shapes(values: Any) -> list[tuple[str, str]]:
    return [(value.name, str(value.shape)) for value in values]


def test_a_module_comes_over_whole(capfd: pytest.CaptureFixture[str]) -> None:
    module = Pooled().train()
    module.norm.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inputs = (torch.randn(1, 3, 8, 8), torch.randn(1, 1))
    loaded = from_torch(module, inputs)
    assert shapes(loaded.graph.inputs) == [("image", "[batch,3,8,8]"), ("scale", "[batch,1]")]
    assert shapes(loaded.graph.outputs) == [("logits", "[batch,4]"), ("mean", "[batch,8]")]
    operators = [each.op_type for each in loaded.graph]
    assert operators.count("GlobalAveragePool") == 2
    assert "ReduceMean" not in operators
    assert {"conv", "fc"} <= {each.name for each in loaded.graph}
    assert (module.training, module.norm.training, module.drop.training) == (True, False, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(each.metadata_props for each in loaded.graph.all_nodes())  # the paths of the user's files
    with torch.no_grad():
        module.fc.weight.add_(1.0)  # training goes on; the exported model must not follow
        wide = {"image": torch.randn(5, 3, 8, 8).numpy(), "scale": np.ones((5, 1), np.float32)}
        module.fc.weight.copy_(before["fc.weight"])
        want = module.eval()(torch.from_numpy(wide["image"]), torch.from_numpy(wide["scale"]))
    logits, mean = run(ir.to_proto(loaded), wide)
    np.testing.assert_allclose(logits, want["logits"].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(mean, want["mean"].detach().numpy(), atol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_the_exported_weights_are_a_copy() -> None:
    module = nn.Linear(2, 2)
    loaded = from_torch(module, torch.ones(2, 2), dynamic_batch=False)
    exported = loaded.graph.initializers["weight"].const_value.numpy().copy()
    with torch.no_grad():
        module.weight.add_(1.0)
    assert np.array_equal(loaded.graph.initializers["weight"].const_value.numpy(), exported)
    assert shapes(loaded.graph.inputs) == [("input", "[2,2]")]


@pytest.mark.slow
def test_the_batch_of_a_state_is_found_in_the_middle() -> None:
    inputs = {"x": torch.randn(1, 5, 3), "h": torch.zeros(1, 1, 4), "c": torch.zeros(1, 1, 4)}
    loaded = from_torch(Stateful(), inputs)
    assert shapes(loaded.graph.inputs) == [("x", "[batch,5,3]"), ("h", "[1,batch,4]"), ("c", "[1,batch,4]")]
    assert [value.name for value in loaded.graph.outputs] == ["output_0", "output_1", "output_2"]


@pytest.mark.slow
def test_a_batch_that_cannot_be_open_stays_fixed_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = from_torch(Fixed(), torch.randn(2, 12))
    assert shapes(loaded.graph.inputs) == [("x", "[2,12]")]
    assert "fixed" in caplog.text
    assert "fixed" in loaded.meta["whet.notes"][0]


def test_a_model_that_differs_from_its_module_is_refused() -> None:
    with pytest.raises(Refused, match="differs from the module"):
        from_torch(Noisy(), torch.ones(2, 3))


def test_what_torch_cannot_export_is_unsupported() -> None:
    with pytest.raises(Unsupported, match=r"torch\.export cannot"):
        from_torch(Choosy(), torch.ones(2, 3))


@pytest.mark.parametrize("inputs", [
    (), (torch.ones(1),) * 3, {"image": torch.ones(1)}, {"wrong": torch.ones(1)}, (1, 2), (torch.ones(1), "x"),
])
def test_inputs_that_do_not_fit(inputs: Any) -> None:
    with pytest.raises(Refused):
        from_torch(Pooled(), inputs)


def test_a_module_that_fails_on_its_example_is_refused() -> None:
    with pytest.raises(Refused, match="fails on inputs"):
        from_torch(Pooled(), (torch.ones(1, 5, 8, 8), torch.ones(1, 1)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with ``whet_test_net.py`` in it."""
    (tmp_path / "whet_test_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    net = nn.Sequential(nn.Linear(3, 2))\n    net.example_inputs = (torch.ones(1, 3),)\n    return net\n"
        "ready = nn.Linear(3, 2)\nnumber = 3\ndef wrong():\n    return 3\ndef fails():\n    raise ValueError('no')\n"
        "def picky(width):\n    return nn.Linear(width, 1)\nclass Nested:\n    Net = nn.ReLU\n")
    (tmp_path / "whet_test_broken.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in ("whet_test_net", "whet_test_broken"):
        sys.modules.pop(name, None)


def test_a_callable_is_imported_from_the_current_folder(package: Path) -> None:
    assert isinstance(import_callable("whet_test_net:build"), nn.Sequential)
    assert isinstance(import_callable("whet_test_net:ready"), nn.Linear)
    assert isinstance(import_callable("whet_test_net:Nested.Net"), nn.ReLU)
    loaded = read_model("whet_test_net:build")  # with the module's own example inputs
    assert [value.name for value in loaded.graph.inputs] == ["input"]
    with pytest.raises(Refused, match="example inputs"):
        read_model("whet_test_net:ready")


@pytest.mark.parametrize(("reference", "says"), [
    ("no_such_module_here:x", "no module"), ("whet_test_net:absent", "has no"), ("whet_test_net:number", "is a int"),
    ("whet_test_net:wrong", "returns a int"), ("whet_test_net:fails", "without arguments fails"),
    ("whet_test_net:picky", "without arguments fails"),
    ("whet_test_broken:x", "install 'not_there_at_all'"), ("not a reference", "package.module:callable"),
])
def test_a_callable_that_gives_no_module(package: Path, reference: str, says: str) -> None:
    with pytest.raises(Refused, match=says):
        import_callable(reference)


def test_weights_are_loaded_and_must_fit(package: Path) -> None:
    state = {"0.weight": torch.full((2, 3), 7.0), "0.bias": torch.zeros(2)}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, package / "w.pt")
    module = import_callable("whet_test_net:build", package / "w.pt")
    assert module[0].weight[0, 0].item() == 7.0
    torch.save({"0.weight": state["0.weight"], "1.bias": state["0.bias"]}, package / "other.pt")
    torch.save({**state, "0.bias": torch.zeros(9)}, package / "shape.pt")
    torch.save(nn.Linear(1, 1), package / "code.pt")
    torch.save([1, 2], package / "list.pt")
    (package / "text.pt").write_text("no weights")
    cases = {"other.pt": "1 are missing", "shape.pt": "shapes do not fit", "code.pt": "holds code", "list.pt": "no state dict",
             "text.pt": "damaged", "absent.pt": "no such file"}
    for name, says in cases.items():
        with pytest.raises(Refused, match=says):
            import_callable("whet_test_net:build", package / name)


def test_weights_from_safetensors(package: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"0.weight": torch.full((2, 3), 5.0), "0.bias": torch.zeros(2)}, package / "w.safetensors")
    assert float(import_callable("whet_test_net:build", package / "w.safetensors")[0].weight[0, 0]) == 5.0
    (package / "bad.safetensors").write_bytes(bytes(20))
    with pytest.raises(Refused, match="damaged"):
        import_callable("whet_test_net:build", package / "bad.safetensors")


def test_what_a_reference_looks_like() -> None:
    assert is_reference("a.b:c")
    assert is_reference("net:Model.small")
    assert not any(map(is_reference, ["model.onnx", "a:b:c", "a.b", "/x/y:z", "a b:c", ":c", "a:", "1a:b"]))


def test_one_door_for_all_sources(tmp_path: Path) -> None:
    proto = relu()
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    by_hand = ir.from_proto(proto)
    by_hand.graph[0].name = ""
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), proto, proto.SerializeToString(), by_hand):
        assert [each.op_type for each in read_model(source).graph] == ["Relu"]
    assert by_hand.graph[0].name == ""  # the caller's model is copied
    assert [each.op_type for each in read_model(nn.ReLU(), example_inputs=torch.ones(2, 2)).graph] == ["Relu"]


@pytest.mark.parametrize(("name", "kind", "says"), [
    ("m.tflite", Unsupported, "TensorFlow Lite"), ("m.h5", Unsupported, "Keras"), ("m.keras", Unsupported, "Keras"),
    ("m.safetensors", Unsupported, "safetensors"), ("m.gguf", Unsupported, "GGUF"), ("m.pt", Refused, "package.module:callable"),
    ("m.pth", Refused, "--weights m.pth"), ("m.txt", Refused, "not an ONNX model"), ("absent.tflite", Refused, "No such file"),
])
def test_other_formats_say_what_to_do(tmp_path: Path, name: str, kind: type[Exception], says: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"TFL3 and so on")
    with pytest.raises(kind, match=says):
        read_model(tmp_path / name)


def test_folders_and_other_things_say_what_to_do(tmp_path: Path) -> None:
    cases = (("tf", "saved_model.pb", "SavedModel"), ("hf", "model.safetensors", "Hugging Face"), ("on", "net.onnx", "net.onnx"))
    for folder, file, says in cases:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(b"x")
        with pytest.raises((Refused, Unsupported), match=says):
            read_model(tmp_path / folder)
    with pytest.raises(Refused, match="a dict"):
        read_model({})  # type: ignore[arg-type]
    with pytest.raises(Refused, match="weights go with"):
        read_model(relu(), weights=tmp_path / "w.pt")
