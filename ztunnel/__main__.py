"""Entry point of the `ztunnel` command; what it does is in `command`."""

from __future__ import annotations

import gc
import sys


def main(argv: list[str] | None = None) -> int:
    """`command.main`. The garbage collector rests from here on, which costs the start less; `collector.settle`
    ends that."""
    gc.disable()
    from ztunnel import command

    return command.main(argv)


if __name__ == "__main__":
    sys.exit(main())
