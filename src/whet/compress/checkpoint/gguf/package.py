"""The ``gguf`` package, which the extra ``llm`` brings."""

from __future__ import annotations

from typing import Any

from whet.core.errors import Refused


def gguf_package() -> Any:
    """The package. Raises Refused where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise Refused("read or write a GGUF file", found="the package gguf is not installed", do="pip install 'whet[llm]'") from error
    return gguf
