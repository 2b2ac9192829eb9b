"""Folders of pictures and sounds, and the declared preprocessing."""

from __future__ import annotations

import dataclasses
import logging
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whet.compress.data import Preprocessing, check_overlap, load_data, split
from whet.compress.data.folder import FileSamples
from whet.core.artifact import TensorSpec
from whet.core.errors import Refused

NCHW = [TensorSpec("x", "float32", ("N", 3, 6, 8))]
NHWC = [TensorSpec("x", "float32", ("N", 6, 8, 3))]
BYTES = [TensorSpec("x", "uint8", ("N", 6, 8, 3))]


def pixels(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """cat/0.png, cat/1.png, dog/2.png, each of 6 x 8 pixels."""
    for seed, place in enumerate(("cat/b.png", "cat/c.png", "dog/a.png")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(seed)).save(tmp_path / place)
    return tmp_path


def declare(folder: Path, text: str) -> None:
    (folder / "whet-data.toml").write_text(text)


def first(folder: Path, inputs: list[TensorSpec], steps: Preprocessing | None = None) -> np.ndarray:
    sample: np.ndarray = next(load_data(folder, inputs, preprocessing=steps).batches(1))["x"][0]
    return sample


def test_classes_are_sorted_and_so_are_their_files(pictures: Path) -> None:
    data = load_data(pictures, BYTES)
    assert data.classes == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1]
    found = np.concatenate([batch["x"] for batch in data.batches(2)])
    assert np.array_equal(found, np.stack([pixels(seed) for seed in range(3)]))
    assert data.sample_hashes == load_data(found, BYTES).sample_hashes


def test_the_declared_order_of_classes_counts(pictures: Path) -> None:
    declare(pictures, 'classes = ["dog", "bird", "cat"]')
    data = load_data(pictures, BYTES)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 2, 2]
    assert np.array_equal(next(data.batches(1))["x"][0], pixels(2))


def test_scale_mean_std_and_layout(pictures: Path) -> None:
    declare(pictures, "scale = 0.00392156862745098\nmean = [0.5, 0.25, 0.0]\nstd = [0.5, 2, 1]")
    wanted = (pixels(0) / 255.0 - [0.5, 0.25, 0]) / [0.5, 2, 1]
    assert np.allclose(first(pictures, NHWC), wanted, atol=1e-6)
    assert np.allclose(first(pictures, NCHW), wanted.transpose(2, 0, 1), atol=1e-6)
    with pytest.raises(Refused, match="first or last"):
        first(pictures, [TensorSpec("x", "float32", ("N", "a", "b", "c"))])
    declare(pictures, 'layout = "nhwc"')
    assert first(pictures, [TensorSpec("x", "float32", ("N", "a", "b", "c"))]).shape == (6, 8, 3)


def test_an_empty_declaration_gives_raw_pixels_and_none_is_refused(pictures: Path) -> None:
    with pytest.raises(Refused, match=r"no whet-data.toml .*scale = 0.0039"):
        load_data(pictures, NHWC)
    declare(pictures, "")
    assert np.array_equal(first(pictures, NHWC), pixels(0).astype(np.float32))
    assert np.array_equal(first(pictures, NHWC, Preprocessing(scale=2.0)), pixels(0) * np.float32(2))


@pytest.mark.parametrize(("color", "wanted"), [("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])])
def test_colours(pictures: Path, color: str, wanted: list[int]) -> None:
    assert np.array_equal(first(pictures, BYTES, Preprocessing(color=color)), pixels(0)[:, :, wanted])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [("N", 1, 6, 8), ("N", 6, 8, 1), ("N", 6, 8)])
def test_a_gray_model_gets_gray(pictures: Path, shape: tuple[int | str, ...]) -> None:
    gray = np.asarray(Image.fromarray(pixels(0)).convert("L"))
    found = first(pictures, [TensorSpec("x", "uint8", shape)])
    assert found.shape == shape[1:]
    assert np.array_equal(found.reshape(6, 8), gray)


@pytest.mark.parametrize(("height", "width", "resize", "crop", "size", "corner"), [
    (40, 60, 20, (16, 16), (30, 20), (7, 2)),
    (63, 40, 20, (16, 15), (20, 31), (2, 8)),
    (40, 60, (18, 25), (), (25, 18), (0, 0)),
    (17, 20, (), (4, 5), (20, 17), (8, 6)),
])
def test_resize_and_crop_are_torchvisions(
    tmp_path: Path,
    height: int,
    width: int,
    resize: int | tuple[int, ...],
    crop: tuple[int, ...],
    size: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    """size: (width, height) after the resize; corner: (left, top) of the crop, both worked out by torchvision's rules."""
    picture = Image.fromarray(pixels(1, height, width))
    picture.save(tmp_path / "a.png")
    wanted = picture.resize(size, Image.Resampling.BILINEAR)
    out = crop or (size[1], size[0])
    wanted = wanted.crop((*corner, corner[0] + out[1], corner[1] + out[0]))
    found = first(tmp_path, [TensorSpec("x", "uint8", ("N", *out, 3))], Preprocessing(resize=resize, crop=crop))
    assert np.array_equal(found, np.asarray(wanted))


def test_files_without_folders_have_no_labels(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "a.png")
    assert load_data(tmp_path, BYTES).labels is None


def test_files_are_decoded_when_asked_for_and_few_at_a_time(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []
    original = FileSamples.read
    monkeypatch.setattr(FileSamples, "read", lambda self, indices: (read.append(indices.tolist()), original(self, indices))[1])
    data = load_data(pictures, BYTES)
    assert read == [[0]]
    batches = data.batches(2)
    next(batches)
    assert read == [[0], [0, 1]]


def test_a_folder_can_be_split(pictures: Path) -> None:
    one, rest = split(load_data(pictures, BYTES), count=1)
    check_overlap(one, rest)
    assert len(rest) == 2


@pytest.mark.parametrize(("text", "message"), [
    ("resize = 0", "resize = 0"), ("crop = [4]", "crop = "), ("std = [0.0]", "std = "), ("length = -1", "length"),
    ("scael = 1", "unknown key 'scael'"), ("crop = [90, 2]", "has 6 x 8"),
    ("scale = ", "not valid TOML"), ('layout = "nwhc"', "layout"), ("mean = [1, 2]", "mean has 2 entries for 3 channels"),
    ('classes = ["cat"]', "'dog' is none of"), ('classes = ["cat", "dog", "cat"]', "twice"), ("[constants]\nsr = 1", "has only 'x'"),
])
def test_a_wrong_declaration_is_refused(pictures: Path, text: str, message: str) -> None:
    declare(pictures, text)
    with pytest.raises(Refused, match=message):
        load_data(pictures, NCHW)


def test_numbers_as_class_names_must_be_in_order(pictures: Path) -> None:
    (pictures / "cat").rename(pictures / "10")
    (pictures / "dog").rename(pictures / "2")
    with pytest.raises(Refused, match='"10" comes before "2"'):
        load_data(pictures, BYTES)


def test_wrong_folders_are_refused(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(Refused, match="empty: no class folders"):
        load_data(tmp_path_factory.mktemp("empty"), BYTES)
    with pytest.raises(Refused, match="model has 2: x, y"):
        load_data(pictures, [*BYTES, TensorSpec("y", "float32", ("N", 1))])
    (pictures / "bird").mkdir()
    with pytest.raises(Refused, match="'bird' holds no pictures"):
        load_data(pictures, BYTES)
    (pictures / "bird").rmdir()
    Image.fromarray(pixels(0)).save(pictures / "loose.png")
    with pytest.raises(Refused, match="beside loose files"):
        load_data(pictures, BYTES)


def test_other_files_are_left_out_and_said(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pictures / "cat" / "notes.txt").write_text("x")
    (pictures / "cat" / ".DS_Store").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(load_data(pictures, BYTES)) == 3
    assert "1 files" in caplog.text
    assert "notes.txt" in caplog.text


def test_constants_stand_in_the_declaration(pictures: Path) -> None:
    declare(pictures, "[constants]\nsr = 16000")
    data = load_data(pictures, [*BYTES, TensorSpec("sr", "int64", ())])
    assert next(data.batches(1))["sr"] == 16000


def test_broken_and_unequal_pictures_are_named(pictures: Path) -> None:
    whole = (pictures / "dog/a.png").read_bytes()
    data = load_data(pictures, BYTES)
    for length in (0, 10, len(whole) // 2):
        (pictures / "dog/a.png").write_bytes(whole[:length])
        with pytest.raises(Refused, match=r"dog.a\.png"):
            list(data.batches(1))
    Image.fromarray(pixels(3, 6, 9)).save(pictures / "dog/a.png")
    with pytest.raises(Refused, match=r"dog.a\.png.*takes samples of shape \[6, 8, 3\]"):
        list(data.batches(1))
    free = [TensorSpec("x", "uint8", ("N", "h", "w", 3))]
    with pytest.raises(Refused, match=r"dog.a\.png into a batch.*resize"):
        list(load_data(pictures, free).batches(3))


def test_a_picture_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels(0, 100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Refused, match="decompression bomb"):
        load_data(tmp_path, BYTES)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(samples * 32768).astype("<i2").tobytes())


TONE = np.sin(2 * np.pi * 200 * np.arange(800) / 8000) * 0.5


@pytest.mark.parametrize(("shape", "layout"), [
    (("N", 500), ""), (("N", 1, 500), ""), (("N", 500, 1), ""), (("N", "a", "b"), "nchw"), (("N", "a", "b"), "nhwc"),
])
def test_a_sound_in_every_layout_is_cut_or_padded(tmp_path: Path, shape: tuple[int | str, ...], layout: str) -> None:
    write_wav(tmp_path / "yes/a.wav", TONE, 8000)
    write_wav(tmp_path / "yes/b.wav", TONE[:300], 8000)
    steps = Preprocessing(length=500, layout=layout)  # type: ignore[arg-type]
    data = load_data(tmp_path, [TensorSpec("x", "float32", shape)], preprocessing=steps)
    both = next(data.batches(2))["x"]
    wanted = (2, 500, 1) if layout == "nhwc" else (2, 1, 500) if layout else (2, *shape[1:])
    assert both.shape == wanted
    assert np.allclose(both[0].ravel(), TONE[:500], atol=1e-4)
    assert np.allclose(both[1].ravel(), np.pad(TONE[:300], (0, 200)), atol=1e-4)


def test_a_sound_is_mixed_resampled_and_normalised(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.stack([TONE, TONE * 0.5], axis=1), 8000)
    steps = Preprocessing(sample_rate=16000, length=1200, scale=2.0, mean=(0.25,), std=(0.5,))
    found = first(tmp_path, [TensorSpec("x", "float32", ("N", 1200))], steps)
    wanted = np.sin(2 * np.pi * 200 * np.arange(1200) / 16000) * 0.375
    assert np.abs(found * 0.5 + 0.25 - 2 * wanted)[50:-50].max() < 0.01
    kept = first(tmp_path, [TensorSpec("x", "float32", ("N", 2, 800))], Preprocessing(mono=False))
    assert np.allclose(kept, [TONE, TONE * 0.5], atol=1e-4)


def test_a_sound_of_another_length_and_a_broken_one_are_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", TONE, 8000)
    with pytest.raises(Refused, match=r"a\.wav.*samples of shape \[500\].*\[1, 800\]"):
        load_data(tmp_path, [TensorSpec("x", "float32", ("N", 500))])
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(Refused, match=r"read the sound .*a\.wav"):
        load_data(tmp_path, [TensorSpec("x", "float32", ("N", 500))])


def test_the_page_names_every_key_and_its_example_is_valid(root: Path) -> None:
    page = (root / "docs" / "data.md").read_text(encoding="utf-8")
    keys = [field.name for field in dataclasses.fields(Preprocessing) if field.name != "extra"]
    assert [key for key in keys if f"`{key}`" not in page] == []
    example = Preprocessing.from_text(page.split("```toml\n")[1].split("```")[0])
    assert example.resize == 256
    assert example.classes == ("cat", "dog")
