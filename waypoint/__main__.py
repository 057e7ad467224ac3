"""Entry point of the `waypoint` command."""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Explain that this version has no L7 data plane; exit status 2.

    A command that starts and does nothing would let a namespace believe in policy that nobody enforces.
    """
    parser = argparse.ArgumentParser(
        prog="waypoint",
        description="The L7 proxy of Ambient Lite. Not part of this version: use Istio's Envoy waypoint.",
    )
    parser.parse_args(argv)
    print(
        "waypoint: this version has no L7 data plane; attach an Istio (Envoy) waypoint instead, "
        "or remove the istio.io/use-waypoint label",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
