"""The closed list of reasons."""

import pytest

from hbone.reasons import Reason

FLAGS = {
    "-",
    "DENY",
    "CONNECT",
    "TLS_FAILURE",
    "H2_HANDSHAKE_FAILURE",
    "NETWORK_POLICY",
    "IDENTITY_ERROR",
    "CERT_REVOKED",
}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_an_istio_flag_a_status_and_a_sentence(reason: Reason) -> None:
    assert reason.response_flag in FLAGS
    assert reason.http_status in {200, 400, 401, 503}
    assert reason.text
    assert not reason.text.endswith(".")
    assert "\n" not in reason.text


def test_only_ok_is_answered_200() -> None:
    assert [reason for reason in Reason if reason.http_status == 200] == [Reason.OK]


@pytest.mark.parametrize("reason", Reason)
def test_policy_reasons_are_401_and_deny(reason: Reason) -> None:
    of_policy = reason.startswith("policy_")
    assert (reason.http_status == 401) is of_policy
    assert (reason.response_flag == "DENY") is of_policy


def test_slugs_are_lower_case_words() -> None:
    for reason in Reason:
        assert reason.value == reason.name.lower()


def test_a_silent_hbone_port_is_reported_as_a_network_policy() -> None:
    assert Reason.CONNECT_TIMEOUT.of_tunnel_dial() is Reason.NETWORK_POLICY
    assert Reason.CONNECT_REFUSED.of_tunnel_dial() is Reason.CONNECT_REFUSED
