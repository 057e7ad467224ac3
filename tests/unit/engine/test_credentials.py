"""What the engine takes as an identity: all of it, or nothing."""

from collections.abc import Iterator

import pytest

from hbone.engine import Engine, EngineConfig
from tests.support.pki import Authority

BROKEN = b"-----BEGIN CERTIFICATE-----\nMIIBaaaa\n-----END CERTIFICATE-----\n"


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(EngineConfig())
    yield made
    made.stop()


def test_what_is_whole_is_taken(engine: Engine) -> None:
    leaf = Authority.root().leaf("spiffe://cluster.local/ns/a/sa/b")
    engine.set_identity(1, leaf.chain_pem, leaf.key_pem, leaf.roots_pem, ("cluster.local",))


@pytest.mark.parametrize("part", ["chain", "roots"])
def test_a_broken_certificate_behind_a_sound_one_is_refused(engine: Engine, part: str) -> None:
    leaf = Authority.root().leaf("spiffe://cluster.local/ns/a/sa/b")
    chain = leaf.chain_pem + (BROKEN if part == "chain" else b"")
    roots = leaf.roots_pem + (BROKEN if part == "roots" else b"")
    with pytest.raises(ValueError, match=r"do(es)? not load"):
        engine.set_identity(1, chain, leaf.key_pem, roots, ("cluster.local",))


def test_anothers_key_is_refused(engine: Engine) -> None:
    ca = Authority.root()
    leaf, other = (ca.leaf(f"spiffe://cluster.local/ns/a/sa/{name}") for name in "bc")
    with pytest.raises(ValueError, match="does not fit the leaf"):
        engine.set_identity(1, leaf.chain_pem, other.key_pem, leaf.roots_pem, ("cluster.local",))
