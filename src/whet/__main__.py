"""``python -m whet``: the same as the command ``whet``."""

from whet.cli import main

if __name__ == "__main__":
    main(prog_name="whet")
