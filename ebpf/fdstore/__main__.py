"""`python -m ebpf.fdstore --socket PATH [--hold SECONDS]`: the store, until it is killed."""

import argparse
import sys
from pathlib import Path

from ebpf.fdstore.server import HOLD, Store, StoreError


def main() -> None:
    """Serve; exit status 1 with one line if that is not possible."""
    parser = argparse.ArgumentParser(prog="python -m ebpf.fdstore", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="in a directory of root's alone")
    parser.add_argument("--hold", type=float, default=HOLD, help=f"seconds without an agent ({HOLD:g})")
    options = parser.parse_args()
    try:
        Store(options.hold).serve(options.socket)
    except (StoreError, OSError) as error:
        sys.exit(f"fdstore: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
