"""The four ways in which Whet says no. A message says what was asked, what was found and what to do."""

from __future__ import annotations


class WhetError(Exception):
    """Root of every error that Whet raises on purpose.

    ``str(error)`` is one readable paragraph, made of three parts that are also kept apart:

    asked: what the caller wanted; found: what stands in the way; do: what to try instead.
    """

    def __init__(self, asked: str, *, found: str = "", do: str = "") -> None:
        self.asked, self.found, self.do = asked, found, do
        parts = [asked.rstrip(".")]
        if found:
            parts.append(found.rstrip("."))
        text = ": ".join(parts) + "."
        super().__init__(f"{text} {do.rstrip('.')}." if do else text)

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive a process boundary
        return (_rebuild, (type(self), self.asked, self.found, self.do))


class Refused(WhetError):
    """The request cannot be granted as put: ask differently."""


class Unsupported(WhetError):
    """This model cannot be had with this technique or target."""


class Untrusted(WhetError):
    """A signature, hash or identity does not hold: never retry."""


class Unreachable(WhetError):
    """Something outside did not answer: retry later."""


def _rebuild(kind: type[WhetError], asked: str, found: str, do: str) -> WhetError:
    return kind(asked, found=found, do=do)
