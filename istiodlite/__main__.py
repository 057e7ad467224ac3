"""Starts the command line: python -m istiodlite."""

import sys

from istiodlite.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
