"""Libraries that log, warn and print about their own insides: nothing of it is for the user."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing that torch, onnxscript, onnx_ir or lm_eval says inside is heard; errors that they raise are."""
    known = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", "lm_eval", "datasets", "huggingface_hub", *known)]
    levels = [log.level for log in loggers]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        for log in loggers:
            log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
