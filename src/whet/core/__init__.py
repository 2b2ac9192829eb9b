"""Floor 0: the words of the house as frozen dataclasses. Standard library only; no clock, no disk, no network."""
