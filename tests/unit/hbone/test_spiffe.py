"""SPIFFE identities."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbone.spiffe import SpiffeError, SpiffeId


def test_parses_the_shape_istio_uses() -> None:
    identity = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/cart")
    assert identity == SpiffeId("cluster.local", "shop", "cart")
    assert str(identity) == "spiffe://cluster.local/ns/shop/sa/cart"
    assert identity.principal == "cluster.local/ns/shop/sa/cart"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "SPIFFE://td/ns/a/sa/b",
        "spiffe:/td/ns/a/sa/b",
        "https://td/ns/a/sa/b",
        "td/ns/a/sa/b",
        "spiffe://td",
        "spiffe://td/ns/a/sa",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns//sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/ns/a/sa/b/",
        "spiffe://td/sa/b/ns/a",
        "spiffe://td/NS/a/sa/b",
        "spiffe://Td/ns/a/sa/b",
        "spiffe://td:80/ns/a/sa/b",
        "spiffe://user@td/ns/a/sa/b",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/a/sa/b?x",
        "spiffe://td/ns/a/sa/b#x",
        "spiffe://td/ns/a/sa/%62",
        "spiffe://td/ns/ä/sa/b",
        "spiffe://td/ns/a/sa/b\n",
        "spiffe://td/ns/a\x00/sa/b",
        "spiffe://td/ns/a/sa/" + "b" * 3000,
    ],
)
def test_refuses_every_other_shape(uri: str) -> None:
    with pytest.raises(SpiffeError):
        SpiffeId.parse(uri)


_SEGMENT = st.from_regex(r"[A-Za-z0-9_-]{1,63}", fullmatch=True)


@settings(deadline=None)
@given(st.from_regex(r"[a-z0-9.-]{1,60}", fullmatch=True), _SEGMENT, _SEGMENT)
def test_text_and_value_say_the_same(trust_domain: str, namespace: str, account: str) -> None:
    identity = SpiffeId(trust_domain, namespace, account)
    assert SpiffeId.parse(str(identity)) == identity


@settings(deadline=None)
@given(st.text(max_size=80))
def test_whatever_parses_is_written_back_unchanged(text: str) -> None:
    try:
        identity = SpiffeId.parse("spiffe://" + text)
    except SpiffeError:
        return
    assert str(identity) == "spiffe://" + text
