"""The small declared preprocessing between a file and a model's input: pictures and sounds.

It is written beside the files as ``whet-data.toml``:

    resize = 256                    # shorter side; or [height, width]
    crop = [224, 224]               # centre
    scale = 0.00392156862745098     # pixel * scale, here 1/255; then (x - mean) / std
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    layout = "nchw"

A picture's steps, in this order: colour, resize, centre crop, scale, mean and std, layout. A sound's: mono, sample rate, length, scale,
mean and std, layout. Anything richer (spectrograms, augmentation) is the user's: save its result as .npz.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from whet.core.artifact import TensorSpec
from whet.core.document import Document, FrozenMap
from whet.core.errors import Refused
from whet.core.toml import parse_toml

Array = np.ndarray[Any, Any]

FILE_NAME = "whet-data.toml"


@dataclass(frozen=True)
class Preprocessing(Document):
    """What happens to each file. A field that is left out does nothing.

    color: "rgb", "bgr" or "gray"; "" takes gray where the model has one channel, else rgb.
    resize: the shorter side, or (height, width), in pixels. crop: (height, width) out of the middle.
    interpolation: of ``resize``, with Pillow's anti-aliasing.
    scale, mean, std: x = (value * scale - mean) / std, in float32; mean and std have one entry, or one for each channel.
    layout: "nchw" (channels first) or "nhwc" (channels last), for sounds too; "" reads it from the model's input.
    sample_rate: Hz; 0 takes the files as they are. length: samples, cut or padded with zeros at the end; 0 as they are.
    mono: average the channels of a sound. classes: the folders in the order of the model's outputs; () sorts them by name.
    constants: inputs that are the same for every sample, by name (``sr = 16000``).
    """

    color: Literal["", "rgb", "bgr", "gray"] = ""
    resize: int | tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Literal["", "nchw", "nhwc"] = ""
    sample_rate: int = 0
    length: int = 0
    mono: bool = True
    classes: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=FrozenMap)

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        wrong = {
            "resize": len(sides) not in (0, 2) or any(side < 1 for side in sides),
            "crop": len(self.crop) not in (0, 2) or any(side < 1 for side in self.crop),
            "std": any(value == 0 for value in self.std),
            "sample_rate": self.sample_rate < 0,
            "length": self.length < 0,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise Refused("read the preprocessing", found=f"{name} = {getattr(self, name)!r}")

    @classmethod
    def from_text(cls, text: str, *, what: str = FILE_NAME) -> Self:
        """TOML to Preprocessing. Raises Refused for a key that does not exist: a misspelt one must not be passed over."""
        document = cls.from_plain(parse_toml(text, what=what))
        if document.extra:
            raise Refused(f"read {what}", found=f"unknown key {next(iter(document.extra))!r}")
        return document


def read_picture(path: Path, steps: Preprocessing, spec: TensorSpec) -> Array:
    """A picture file as float32 (uint8 where nothing is computed) in the model's layout, without the batch axis.

    The arithmetic is torchvision's: sizes and crops are rounded alike. EXIF orientation is ignored, as there. Raises Refused.
    """
    from PIL import Image

    channels_last, channels = _layout(steps, spec)
    color = steps.color or ("gray" if channels == 1 else "rgb")
    try:
        with Image.open(path) as file:
            picture: Any = file.convert("L" if color == "gray" else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"read the picture {path}", found=f"{error}", do="replace or remove the file") from error
    picture = _resized(picture, steps)
    pixels = np.asarray(_cropped(picture, steps, path))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels  # [height, width, channel]
    pixels = pixels[:, :, ::-1] if color == "bgr" else pixels
    values = _normalised(pixels, steps, path)
    if len(spec.shape) == 3 and values.shape[2] == 1:  # a gray model without a channel axis: [batch, height, width]
        return values[:, :, 0]
    return values if channels_last else np.ascontiguousarray(values.transpose(2, 0, 1))


def read_sound(path: Path, steps: Preprocessing, spec: TensorSpec) -> Array:
    """A sound file as float32 in -1..1 (before scale, mean and std) in the model's layout, without the batch axis. Raises Refused."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            # Reading no more than is needed bounds what a long file can cost. Resampling needs the same stretch of time.
            wanted = steps.length * rate // (steps.sample_rate or rate) + 64 if steps.length else -1
            sound: Array = file.read(frames=wanted, dtype="float32", always_2d=True)  # [time, channel]
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(f"read the sound {path}", found=f"{error}", do="replace or remove the file") from error
    sound = sound.mean(axis=1, keepdims=True, dtype=np.float32) if steps.mono else sound
    sound = _normalised(_cut(_resampled(sound, rate, steps), steps.length), steps, path)
    if len(spec.shape) == 2 and sound.shape[1] == 1:
        return sound[:, 0]
    last = spec.shape[-1]
    channels_last = steps.layout == "nhwc" or (not steps.layout and isinstance(last, int) and last <= 2)
    return sound if channels_last else np.ascontiguousarray(sound.T)


def _layout(steps: Preprocessing, spec: TensorSpec) -> tuple[bool, int | str]:
    """(channels last?, number of channels) of a picture input."""
    shape = spec.shape
    if len(shape) == 3:
        return True, 1
    if len(shape) != 4:
        raise Refused(f"feed pictures to the input {spec.name!r}", found=f"its shape has {len(shape)} dimensions where 4 were expected",
                      do="save the prepared arrays as .npz")
    if steps.layout:
        return steps.layout == "nhwc", shape[3 if steps.layout == "nhwc" else 1]
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        raise Refused(f"tell the layout of the input {spec.name!r} from its shape {list(shape)}",
                      found="the channels could be first or last", do=f'write layout = "nchw" or "nhwc" in {FILE_NAME}')
    return last, shape[3] if last else shape[1]


def _resized(picture: Any, steps: Preprocessing) -> Any:
    from PIL import Image

    if not steps.resize:
        return picture
    if isinstance(steps.resize, tuple):
        height, width = steps.resize
    else:  # torchvision's rule for the longer side: cut, not rounded
        short = min(picture.size)
        width, height = (steps.resize if side == short else int(steps.resize * side / short) for side in picture.size)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
    return picture.resize((width, height), method[steps.interpolation])


def _cropped(picture: Any, steps: Preprocessing, path: Path) -> Any:
    if not steps.crop:
        return picture
    (height, width), (full_width, full_height) = steps.crop, picture.size
    if height > full_height or width > full_width:
        raise Refused(f"crop {path} to {height} x {width}", found=f"the picture has {full_height} x {full_width} (height x width)",
                      do="resize it first, to at least the size of the crop")
    top, left = round((full_height - height) / 2.0), round((full_width - width) / 2.0)
    return picture.crop((left, top, left + width, top + height))


def _normalised(values: Array, steps: Preprocessing, path: Path) -> Array:
    """(values * scale - mean) / std over the last axis, the channels; untouched (also in dtype) where none of them is given."""
    for name, given in (("mean", steps.mean), ("std", steps.std)):
        if len(given) not in (0, 1, values.shape[-1]):
            raise Refused(f"normalise {path}", found=f"{name} has {len(given)} entries for {values.shape[-1]} channels")
    if steps.scale != 1.0:
        values = values.astype(np.float32) * np.float32(steps.scale)
    if steps.mean:
        values = values.astype(np.float32) - np.asarray(steps.mean, np.float32)
    if steps.std:
        values = values.astype(np.float32) / np.asarray(steps.std, np.float32)
    return values


def _resampled(sound: Array, rate: int, steps: Preprocessing) -> Array:
    if steps.sample_rate in (0, rate):
        return sound
    from scipy.signal import resample_poly

    result: Array = resample_poly(sound, steps.sample_rate, rate, axis=0)
    return result.astype(np.float32)


def _cut(sound: Array, length: int) -> Array:
    if not length:
        return sound
    return np.pad(sound[:length], ((0, max(0, length - len(sound))), (0, 0)))
