"""The ways from client to server that group `hbone` compares.

Each starts its processes in a session and leaves the address that the client connects to in `session.entry`.
"""

from tests.bench.variants.base import Variant
from tests.bench.variants.envoy import Envoy
from tests.bench.variants.ours import Ours
from tests.bench.variants.plain import Direct, Splice
from tests.bench.variants.ztunnel import RustZtunnel

__all__ = ["DEFAULT", "Variant", "known"]

DEFAULT = ("ours", "none", "splice", "envoy-c1", "envoy-c2", "ztunnel")


def known() -> dict[str, Variant]:
    """Every variant by name; those not in DEFAULT are for finding out where time goes."""
    variants: list[Variant] = [
        Ours("ours"),
        Ours("ours-w1", workers=1),
        Ours("ours-openssl", ipsec_mb=False),
        Ours("ours-static", decide="static"),
        Ours("ours-static-w1", workers=1, decide="static"),
        Direct(),
        Splice(),
        Envoy(1),
        Envoy(2),
        RustZtunnel(),
    ]
    return {variant.name: variant for variant in variants}
