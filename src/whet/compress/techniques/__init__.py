"""One file a technique, found by its name. ``whet.compress.technique`` says what such a file holds."""
