"""A decoder in onnxruntime whose keys and values stay where they are: attention writes new ones behind the old ones, nothing is copied.

GroupQueryAttention does so where its past and its present are the same memory (onnxruntime's ContribOperators.md: "when past_key uses same
tensor as present_key (k-v cache), it is of length max_sequence_length").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from whet.core.errors import Refused, Unsupported
from whet.device.language.folder import CONFIG_NAME, ModelFolder
from whet.device.machine import others_running, usable_cores
from whet.device.session import explain, open_session

_CPU = ("cpu", 0)
# A token is some sixty short products. Threads that wait for the next one awake are half as fast again where nothing else runs, and half as
# fast where something does: they have used up their share of the processor by the time they are needed (docs/run.md).
WAITING = {"awake": "1", "asleep": "0"}
_SPINNING = "session.intra_op.allow_spinning"
_FREE = 0.5  # of a processor that others may want while threads wait awake
# A prompt goes in so many tokens at a time: the logits of each are [tokens, vocabulary], 50 MB here with 50,000 words.
CHUNK = 256


def waiting(asked: str, threads: int | None = None) -> str:
    """How threads wait for each other: "awake" or "asleep". "auto" is awake where the cores that they need are free at this moment.

    threads: None is every physical core. Raises Refused for another word.
    """
    if asked != "auto" and asked not in WAITING:
        raise Refused(f"wait {asked!r}", found="no such way", do=f"choose auto, {' or '.join(WAITING)}")
    if asked != "auto":
        return asked
    others, cores = others_running(), usable_cores()
    busy = others is not None and others + (threads or cores) > cores + _FREE
    return "asleep" if busy else "awake"


class OnnxDecoder:
    """Reads tokens and gives the logits of the next one. capacity: the most tokens that its memory holds. wait: as ``waiting`` takes it."""

    def __init__(self, where: ModelFolder, *, capacity: int, threads: int | None = None, wait: str = "auto",
                 options: Mapping[str, str] | None = None) -> None:  # fmt: skip
        self.wait = waiting(wait, threads)
        self._session = open_session(where.model, threads=threads, options={_SPINNING: WAITING[self.wait], **(options or {})})
        self._where, self.length = where, 0
        self._binding = self._session.io_binding()
        shape = (1, where.kv_heads, capacity, where.head_size)
        self._cache = [np.zeros(shape, np.float32) for _ in range(2 * where.layers)]
        self._ones = np.ones((1, capacity), np.int64)
        self._order = np.arange(capacity)[None]
        self._ids = np.zeros((1, 1), np.int64)
        self._logits = np.zeros((1, 0, 0), np.float32)
        self._vocabulary = self._check()
        for buffer, (past, present) in zip(self._cache, self._names(), strict=True):
            self._bind_input(past, buffer, shape)
            self._binding.bind_output(present, *_CPU, np.float32, shape, buffer.ctypes.data)

    @property
    def capacity(self) -> int:
        return self._ones.shape[1]

    def read(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[vocabulary], the logits behind the last of ``tokens``, which follow what was read before. Valid until the next call.

        Raises Refused where they do not fit the capacity, Unsupported where the model fails.
        """
        room = self.capacity - self.length
        if not 0 < len(tokens) <= room:
            raise Refused(f"read {len(tokens)} tokens", found=f"room for {room} more", do="open the model with more room")
        for begin in range(0, len(tokens), CHUNK):
            self._step(tokens[begin : begin + CHUNK])
        return self._logits[0, -1]

    def _step(self, tokens: Sequence[int]) -> None:
        count, end = len(tokens), self.length + len(tokens)
        if count != self._ids.shape[1] or self._logits.shape[1] != count:
            self._resize(count)
        self._ids[0] = tokens
        self._bind_input(self._where.mask, self._ones, (1, end))
        if self._where.positions:
            self._positions[0] = self._order[0, self.length : end]
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's errors share no class but Exception
            raise Unsupported("run the model", found=explain(error), do="export it again") from error
        self.length = end

    def _resize(self, count: int) -> None:
        """Buffers for so many tokens a step; they stay the same from one token to the next."""
        self._ids, self._logits = np.zeros((1, count), np.int64), np.zeros((1, count, self._vocabulary), np.float32)
        self._positions = np.zeros((1, count), np.int64)
        self._bind_input(self._where.ids, self._ids, self._ids.shape)
        if self._where.positions:
            self._bind_input(self._where.positions, self._positions, self._positions.shape)
        self._binding.bind_output(self._where.logits, *_CPU, np.float32, self._logits.shape, self._logits.ctypes.data)

    def _bind_input(self, name: str, array: NDArray[np.generic], shape: Sequence[int]) -> None:
        self._binding.bind_input(name, *_CPU, array.dtype.type, shape, array.ctypes.data)

    def _names(self) -> list[tuple[str, str]]:
        """(past, present) in the order of the buffers."""
        parts = zip(self._where.past, self._where.present, strict=True)
        return [(past % layer, present % layer) for past, present in parts for layer in range(self._where.layers)]

    def _check(self) -> int:
        """The vocabulary. Unsupported where inputs and outputs are not those that genai_config.json names, or not of float32."""
        where = self._where
        inputs, outputs = ({each.name: each for each in some} for some in (self._session.get_inputs(), self._session.get_outputs()))
        floats = [name for pair in self._names() for name in pair] + [where.logits]
        expected = {where.ids, where.mask, *floats, *([where.positions] if where.positions else [])}
        odd = [name for name in floats if name not in {**inputs, **outputs} or {**inputs, **outputs}[name].type != "tensor(float)"]
        odd += [name for name in inputs if name not in expected]
        if odd:
            raise Unsupported(f"run {where.model}", found=f"{odd[0]} is not as {CONFIG_NAME} says, or not of float32",
                              do="export the model with `whet export --to onnx`")  # fmt: skip
        return int(outputs[where.logits].shape[-1])
