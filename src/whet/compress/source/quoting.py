"""Names that come out of a file, put into a message: a hostile name is megabytes long or moves the cursor of a terminal."""

from __future__ import annotations

_LONGEST = 80


def quoted(text: object) -> str:
    """``repr`` of a text, cut to 80 characters."""
    name = text if isinstance(text, str) else str(text)  # protobuf hands out bytes where a name is no valid UTF-8
    return repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}...")
