"""Entry point of the `ztunnel` command; what it does is in `command`."""

from __future__ import annotations

import gc
import sys


def main(argv: list[str] | None = None) -> int:
    """`command.main`. The garbage collector rests while modules are read, which costs the start less; the agent
    switches it on when it has its first state."""
    gc.disable()
    from ztunnel import command

    return command.main(argv)


if __name__ == "__main__":
    sys.exit(main())
