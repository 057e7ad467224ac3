"""A certificate authority that lies to its agents, and agents that ask for what is not theirs (68, 69)."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import grpc
import jwt
import pytest
import trio

from hbone.spiffe import SpiffeId
from hbone.svid import Svid, make_csr
from istiodlite.api import ca_pb2
from istiodlite.ca.authority import Authority
from istiodlite.ca.caller import Caller
from istiodlite.ca.issue import chain, issue, read_csr
from istiodlite.ca.tokens import ISSUER, load_or_create_token_key, mint
from tests.adversarial.control.server import Scripted, serving
from tests.interop.control.conftest import ControlPlane, control
from tests.support.serving import wait_until
from ztunnel.identity import renewal
from ztunnel.identity.ca import CaClient
from ztunnel.identity.manager import CertificateRefused, IdentityManager

__all__ = ["control"]

WEB = SpiffeId("cluster.local", "shop", "web")
DB = SpiffeId("cluster.local", "shop", "db")
HOUR = datetime.timedelta(hours=1)
Sign = Callable[[ca_pb2.IstioCertificateRequest], bytes]


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _answer(parts: list[str]) -> bytes:
    return ca_pb2.IstioCertificateResponse(cert_chain=parts).SerializeToString()


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.load_or_create(tmp_path_factory.mktemp("ca"), "cluster.local")


def _signer(authority: Authority, what: str) -> Sign:
    def sign(request: ca_pb2.IstioCertificateRequest) -> bytes:
        key, now = read_csr(request.csr), utc_now()
        identity = DB if what == "another identity" else WEB
        if what == "another key":
            key = read_csr(make_csr(WEB)[0])
        if what == "expired":
            now -= 48 * HOUR
        parts = chain(authority, issue(authority, identity, key, 24 * HOUR, now))
        lies: dict[str, bytes] = {
            "html": b"<html><body>It works!</body></html>",
            "html in the chain": _answer(["<html>It works!</html>", parts[-1]]),
            "nothing": _answer([]),
            "no roots": _answer(parts[:1]),
            "roots that are none": _answer(
                [parts[0], "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"]
            ),
        }
        return lies.get(what, _answer(parts))

    return sign


class _Sink:
    """What the engine would be given."""

    def __init__(self) -> None:
        self.given: list[Svid | None] = []

    def set_identity(self, number: int, svid: Svid) -> None:
        self.given.append(svid)

    def drop_identity(self, number: int) -> None:
        self.given.append(None)


LIES = [
    "another identity",
    "another key",
    "expired",
    "html",
    "html in the chain",
    "nothing",
    "no roots",
    "roots that are none",
]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.trio
async def test_ca_lies(authority: Authority, lie: str) -> None:
    """Refused with one line, and what is held stays in use."""
    with serving(Scripted(sign=_signer(authority, "truth"))) as server:
        client = CaClient(server.plane(), ttl=86400)
        sink = _Sink()
        manager = IdentityManager(client, sink)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.run)
            number = manager.hold("pod", WEB)
            with trio.fail_after(60):
                while not sink.given:
                    await trio.sleep(0.01)
            held = sink.given[-1]
            server.sign = _signer(authority, lie)
            with pytest.raises(CertificateRefused) as refusal:
                await client.issue(WEB)
            assert "\n" not in str(refusal.value)
            assert sink.given == [held], f"number {number} keeps its certificate"
            nursery.cancel_scope.cancel()


def test_a_failed_renewal_is_tried_again_within_150_seconds() -> None:
    backoff = renewal.retry()
    assert max(backoff.next(0.0) for _ in range(100)) <= 150


def _token(control: ControlPlane, **changes: object) -> str:
    """A token of the agent on n1 with claims changed."""
    key = load_or_create_token_key(control.data)
    caller = Caller("istio-system", "ztunnel", "ztunnel-n1", "uid-ztunnel-n1", "n1")
    sound = mint(key, caller, utc_now())
    claims = jwt.decode(sound, key.public_key(), algorithms=["ES256"], audience="istio-ca", issuer=ISSUER)
    return jwt.encode({**claims, **changes}, key, algorithm="ES256")


def _unsigned(control: ControlPlane) -> str:
    key = load_or_create_token_key(control.data)
    sound = mint(key, Caller("istio-system", "ztunnel", "ztunnel-n1", "uid-ztunnel-n1", "n1"), utc_now())
    claims = jwt.decode(sound, options={"verify_signature": False})
    return jwt.encode(claims, "", algorithm="none")


def _refused(control: ControlPlane, token: str | None, identity: SpiffeId) -> grpc.RpcError:
    csr, _ = make_csr(identity)
    agent = control.agent(token=token) if token else control.agent()
    with pytest.raises(grpc.RpcError) as error:
        agent.create_certificate(csr, str(identity))
    return error.value


def test_csr_for_foreign_pod(control: ControlPlane) -> None:
    """Every way to another's identity is refused alike, without a reason for the caller and with one in the log."""
    past = int(utc_now().timestamp()) - 3600
    attempts: list[tuple[str | None, SpiffeId, str]] = [
        (None, DB, "no pod of shop/db runs on node n1"),
        (None, SpiffeId("cluster.local", "shop", "nobody"), "no pod of shop/nobody runs on node n1"),
        (None, SpiffeId("other.domain", "shop", "web"), "is of another trust domain"),
        (_token(control, exp=past), WEB, "token refused: expired"),
        (_token(control, aud=["vault"]), WEB, "token refused: Audience"),
        (_token(control, iss="https://elsewhere"), WEB, "token refused: Invalid issuer"),
        (_unsigned(control), WEB, "token refused"),
        (
            control.token(pod="web", uid="uid-web", namespace="shop", service_account="web"),
            DB,
            "not a trusted node",
        ),
        (control.token(uid="uid-of-an-earlier-pod"), WEB, "has UID uid-ztunnel-n1"),
        (control.token(pod="gone", uid="uid-gone"), WEB, "is not known"),
        (control.token(node="n2"), WEB, "is on node n1"),
    ]
    for token, identity, row in attempts:
        error = _refused(control, token, identity)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, row
        assert error.details() == "request authenticate failure", "callers learn nothing"
        refusals = [line for line in control.log.splitlines() if "refused" in line and "peer=" in line]
        assert row in refusals[-1]
    assert control.metric("citadel_server_success_cert_issuance_count_total") == 0


def test_a_replayed_token_gives_no_more_than_the_pod_it_is_bound_to(control: ControlPlane) -> None:
    """Bearer tokens can be replayed; what they are good for ends with the pod."""
    token = control.token()
    csr, _ = make_csr(WEB)
    assert control.agent(token=token).create_certificate(csr, str(WEB)).cert_chain
    control.delete({"kind": "Pod", "metadata": {"namespace": "istio-system", "name": "ztunnel-n1"}})

    def still_good() -> bool:
        try:
            return bool(control.agent(token=token).create_certificate(csr, str(WEB)).cert_chain)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED

    wait_until(lambda: not still_good(), "the end of what the token is good for")
