"""``python -m rompatch``: the command line without its script."""

from __future__ import annotations

from rompatch.cli import main

if __name__ == "__main__":
    main()
