"""CreateCertificate over real TLS: what a node agent gets, and everything it must not get."""

from __future__ import annotations

import datetime

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hbone.spiffe import SpiffeId
from hbone.svid import from_issued, make_csr
from tests.interop.control.conftest import ControlPlane, pod
from tests.support.serving import wait_until

WEB = "spiffe://cluster.local/ns/shop/sa/web"
DB = "spiffe://cluster.local/ns/shop/sa/db"


def refused(control: ControlPlane, csr: str, identity: str | None, **agent: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        control.agent(**agent).create_certificate(csr, identity)
    return error.value


def test_an_agent_gets_the_certificate_of_a_pod_on_its_node(control: ControlPlane) -> None:
    identity = SpiffeId.parse(WEB)
    csr, key = make_csr(identity)
    answer = control.agent().create_certificate(csr, WEB)
    svid = from_issued(identity, key, list(answer.cert_chain), datetime.datetime.now(datetime.UTC))
    assert len(answer.cert_chain) == 2
    assert svid.roots_pem.strip() == control.root().strip()
    life = svid.not_after - svid.not_before
    assert life == datetime.timedelta(hours=24, minutes=2)
    assert f"issued identity={WEB}" in control.log


def test_the_leaf_verifies_against_the_printed_root(control: ControlPlane) -> None:
    csr, _ = make_csr(SpiffeId.parse(WEB))
    leaf = x509.load_pem_x509_certificate(control.agent().create_certificate(csr, WEB).cert_chain[0].encode())
    root = x509.load_pem_x509_certificate(control.root())
    leaf.verify_directly_issued_by(root)


def test_the_identity_of_a_pod_on_another_node_is_refused_without_saying_why(control: ControlPlane) -> None:
    csr, _ = make_csr(SpiffeId.parse(DB))
    error = refused(control, csr, DB)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "shop" not in error.details()
    assert "no pod of shop/db runs on node n1" in control.log
    assert control.metric("istiodlite_ca_refused_total") == 1


def test_a_pod_that_just_came_is_allowed_before_the_debounce_ends(control: ControlPlane) -> None:
    identity = SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/fresh")
    csr, _ = make_csr(identity)
    control.put(pod("shop", "fresh", "10.1.0.50"))
    agent = control.agent()

    def allowed() -> bool:
        try:
            return bool(agent.create_certificate(csr, str(identity)).cert_chain)
        except grpc.RpcError:
            return False

    wait_until(allowed, "the new pod's identity")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ({"uid": "other"}, "has UID uid-ztunnel-n1, the token other"),
        ({"pod": "ztunnel-n9", "uid": "x"}, "is not known"),
        (
            {"pod": "web", "uid": "uid-web", "namespace": "shop", "service_account": "web"},
            "not a trusted node",
        ),
        ({"node": "n2"}, "is on node n1, the token says n2"),
    ],
)
def test_impersonation_needs_a_trusted_account_and_a_true_pod(
    control: ControlPlane, token: dict[str, str], reason: str
) -> None:
    csr, _ = make_csr(SpiffeId.parse(WEB))
    error = refused(control, csr, WEB, token=control.token(**token))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason in control.log


def test_a_waypoint_gets_its_own_identity_without_asking_for_one(control: ControlPlane) -> None:
    token = control.token(pod="web", uid="uid-web", namespace="shop", service_account="web")
    csr, _ = make_csr(SpiffeId.parse(DB))
    answer = control.agent(token=token).create_certificate(csr)
    leaf = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in san] == [WEB], "what the CSR says about names is ignored"


def test_no_token_no_certificate(control: ControlPlane) -> None:
    agent = control.agent()
    agent.token = ""
    csr, _ = make_csr(SpiffeId.parse(WEB))
    with pytest.raises(grpc.RpcError) as error:
        agent.create_certificate(csr, WEB)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert control.metric("citadel_server_authentication_failure_count_total") == 1


def test_a_csr_with_a_broken_signature_is_an_invalid_argument(control: ControlPlane) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    data = bytearray(csr.public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(data)).public_bytes(serialization.Encoding.PEM).decode()
    error = refused(control, broken, WEB)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "signature" in error.details()


def test_a_lifetime_over_ninety_days_is_an_invalid_argument(control: ControlPlane) -> None:
    csr, _ = make_csr(SpiffeId.parse(WEB))
    with pytest.raises(grpc.RpcError) as error:
        control.agent().create_certificate(csr, WEB, seconds=91 * 86400)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
