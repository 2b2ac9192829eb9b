"""The command line. ``main`` is the command ``whet``; each file holds one of its commands, loaded when it is asked for."""

from whet.cli.group import main

__all__ = ["main"]
