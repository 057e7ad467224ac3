"""What a peer may claim in a CONNECT, and what is believed of it (26, 27, 28, 30, 31)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hbone.connect import Baggage, ConnectError, SocketAddress, parse_authority, parse_baggage, parse_headers
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import Deliver, InboundConnection, InboundVerdict, Refuse, Via
from ztunnel.state.model import Workload
from ztunnel.state.snapshot import Snapshot

POD = SocketAddress.of("10.0.0.5", 15008)
LOCAL = Workload(
    uid="Kubernetes//Pod/default/server",
    name="server",
    namespace="default",
    identity=SpiffeId("cluster.local", "default", "server"),
    addresses=(POD.ip,),
)
CLIENT = InboundConnection(
    local=LOCAL,
    via=Via.HBONE,
    peer=SocketAddress.of("10.0.0.9", 40_000),
    destination=POD,
    identity=SpiffeId("cluster.local", "default", "client"),
    authority="10.0.0.5:80",
)


def decide(**changes: object) -> InboundVerdict:
    """The verdict about a changed CONNECT, in a mesh that knows nothing else."""
    return decide_inbound(replace(CLIENT, **changes), Snapshot.empty())  # type: ignore[arg-type]


MALFORMED = [
    *("", ":", "80", "10.0.0.1", "10.0.0.1:", ":80", "host:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:-1"),
    *(
        "10.0.0.1:+80",
        "10.0.0.1: 80",
        "10.0.0.1:80 ",
        "10.0.0.1:8_0",
        "10.0.0.1:0x50",
        "10.0.0.1:080",
        "10.0.0.1:80.0",
    ),
    *(
        "10.0.0.1:٨٠",
        "10.0.0.1:８０",
        "１０.0.0.1:80",
        "10.0.0.1:" + "9" * 5000,
        "user@10.0.0.1:80",
        "user:pw@h:80",
    ),
    *(
        "[::1",
        "[::1]",
        "[::1]:",
        "::1]:80",
        "[[::1]]:80",
        "[::1%eth0]:80",
        "[fe80::1%25lo]:80",
        "[10.0.0.1]:80",
    ),
    *(
        "[:::]:80",
        "[::1]x:80",
        "x[::1]:80",
        "10.0.0.1:80:80",
        "::1:80",
        "10.0.0:80",
        "10.0.0.256:80",
        "010.0.0.1:80",
    ),
    *(
        "0x0a.0.0.1:80",
        "2130706433:80",
        "10.0.0.1.:80",
        "a..b:80",
        ".a:80",
        "-a:80",
        "a-:80",
        "a b:80",
        "a\n:80",
    ),
    *(
        "a\0b:80",
        "http://a:80",
        "a/b:80",
        "a?b:80",
        "a#b:80",
        "münchen:80",
        "x" * 65_536 + ":80",
        "a" * 64 + ":80",
    ),
]


@pytest.mark.parametrize("authority", MALFORMED, ids=lambda text: ascii(text)[:40])
def test_authority_malformed(authority: str) -> None:
    """400, and nothing is looked up (`needs` is empty)."""
    verdict = decide(authority=authority)
    assert verdict.reason is Reason.BAD_REQUEST
    assert verdict.action == Refuse(400)
    assert verdict.needs == ()


@given(st.text(max_size=60) | st.text("0123456789.:[]abcdefx%@-_", max_size=40))
@example("[::ffff:10.0.0.1]:80")
def test_any_authority_is_read_exactly_or_refused(text: str) -> None:
    """What is accepted means one thing: written out and read again it is the same."""
    try:
        found = parse_authority(text)
    except ConnectError:
        return
    assert 1 <= found.port <= 65_535
    assert parse_authority(str(found)) == found
    if isinstance(found.host, str):
        assert text.lower() == str(found)
        with pytest.raises(ValueError):
            ip_address(found.host)
    else:
        assert isinstance(found.host, IPv4Address | IPv6Address)
        assert not (isinstance(found.host, IPv6Address) and found.host.ipv4_mapped)


@pytest.mark.parametrize(
    ("authority", "reason", "status"),
    [
        ("10.0.0.6:80", Reason.IP_MISMATCH, 400),
        ("127.0.0.1:80", Reason.IP_MISMATCH, 400),
        ("0.0.0.0:80", Reason.IP_MISMATCH, 400),
        ("169.254.169.254:80", Reason.IP_MISMATCH, 400),
        ("[::1]:80", Reason.IP_MISMATCH, 400),
        ("[::ffff:10.0.0.6]:80", Reason.IP_MISMATCH, 400),
        ("localhost:80", Reason.UNKNOWN_SERVICE, 503),
        ("kubernetes.default.svc.cluster.local:443", Reason.UNKNOWN_SERVICE, 503),
    ],
)
def test_authority_not_this_pod(authority: str, reason: Reason, status: int) -> None:
    verdict = decide(authority=authority)
    assert verdict.reason is reason
    assert verdict.action == Refuse(status)


@pytest.mark.parametrize("authority", ["10.0.0.5:80", "[::ffff:10.0.0.5]:80", "[::ffff:a00:5]:80"])
def test_authority_of_this_pod_in_any_clothes(authority: str) -> None:
    assert decide(authority=authority).action == Deliver(SocketAddress.of("10.0.0.5", 80), CLIENT.peer.ip)


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
@pytest.mark.parametrize("via", list(Via))
@pytest.mark.parametrize("peer", ["10.0.0.9", "10.0.0.5", "127.0.0.1"], ids=["outside", "itself", "loopback"])
def test_self_call(port: int, via: Via, peer: str) -> None:
    """Our own ports, from anywhere, in the tunnel or not: refused, so that nothing goes round in circles."""
    where = SocketAddress(POD.ip, port)
    verdict = decide(
        via=via,
        peer=SocketAddress.of(peer, 40_000),
        authority=f"10.0.0.5:{port}" if via is Via.HBONE else None,
        destination=POD if via is Via.HBONE else where,
        identity=CLIENT.identity if via is Via.HBONE else None,
    )
    assert verdict.reason is Reason.ILLEGAL_PORT
    assert isinstance(verdict.action, Refuse)


def test_self_call_does_not_bind_the_pods_own_address() -> None:
    verdict = decide(peer=SocketAddress(POD.ip, 40_000))
    assert verdict.action == Deliver(SocketAddress(POD.ip, 80), None)


@pytest.mark.parametrize(
    "header",
    [
        ("forwarded", 'for="10.0.0.1:1";host=other.default.svc.cluster.local'),
        ("forwarded", "for=127.0.0.1"),
        ("x-forwarded-network", "other"),
        ("baggage", "k8s.namespace.name=kube-system,service.name=admin"),
    ],
    ids=lambda header: header[0],
)
def test_forwarded_spoof(header: tuple[str, str]) -> None:
    """Whatever a peer says of itself: the verdict, the address bound and the identity are the real ones."""
    said = parse_headers([header])
    plain = decide()
    claimed = decide(forwarded_host=said.forwarded_host, from_network=said.from_network, baggage=said.baggage)
    assert (claimed.reason, claimed.action) == (plain.reason, plain.action)
    assert claimed.authorization == plain.authorization
    assert claimed.ends.source_identity == CLIENT.identity


@pytest.mark.parametrize(
    "value",
    [
        "k8s.namespace.name=" + "x" * 16_000,
        ",".join(f"k{n}=v" for n in range(5000)),
        "k8s.namespace.name=%zz",
        "k8s.namespace.name=%ff%fe",
        "k8s.namespace.name=a%0ab",
        "k8s.namespace.name=%e2%80%ae",
        "=,=,=;;;,,,",
        "k8s.namespace.name=" + "%41" * 254,
    ],
    ids=[
        "16k",
        "5000_items",
        "bad_escape",
        "not_utf8",
        "newline",
        "direction_mark",
        "punctuation",
        "254_escaped",
    ],
)
def test_baggage_bomb_is_dropped(value: str) -> None:
    assert parse_baggage([value]) == Baggage()


@given(st.lists(st.text(max_size=400), max_size=5))
def test_any_baggage_is_bounded_and_printable(lines: list[str]) -> None:
    """It becomes metric labels."""
    found = parse_baggage(lines)
    for name in Baggage.__slots__:
        value = getattr(found, name)
        assert len(value) <= 253
        assert value == "" or value.isprintable()


@given(
    st.lists(
        st.tuples(st.sampled_from(["baggage", "forwarded", "traceparent", "x-other"]), st.text(max_size=300))
    )
)
def test_headers_never_fail_a_request(headers: list[tuple[str, str]]) -> None:
    parse_headers(headers)
