"""The webhook of a real server, asked over TLS as the API server asks."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from istiodlite.webhook.registration import corrections
from istiodlite.webhook.server import MAX_BODY
from tests.interop.control.conftest import ControlPlane
from tests.support.ports import free_port
from tests.unit.istiodlite.test_webhook_review import asked, policy


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[tuple[ControlPlane, int]]:
    port = free_port()
    control = ControlPlane(tmp_path, "--webhook-port", str(port))
    control.start()
    yield control, port
    assert control.stop() == 0
    assert "Traceback" not in control.log


@contextmanager
def connected(plane: tuple[ControlPlane, int]) -> Iterator[http.client.HTTPSConnection]:
    """With the name that the API server asks for checked."""
    control, port = plane
    context = ssl.create_default_context(cafile=str(control.data / "root-cert.pem"))
    made = http.client.HTTPSConnection("istiod.istio-system.svc", port, timeout=30, context=context)
    raw = socket.create_connection(("127.0.0.1", port), timeout=30)
    made.sock = context.wrap_socket(raw, server_hostname="istiod.istio-system.svc")
    try:
        yield made
    finally:
        made.close()


def post(connection: http.client.HTTPSConnection, body: Any, path: str = "/validate") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", f"{path}?timeout=10s", data, {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    return answer.status, json.loads(text) if answer.status == 200 else text


def test_reviews_are_answered_on_one_connection(plane: tuple[ControlPlane, int]) -> None:
    with connected(plane) as connection:
        for spec, allowed in (({}, True), ({"action": "NONSENSE"}, False), ({}, True)):
            status, answer = post(connection, asked(policy(spec)))
            assert (status, answer["response"]["allowed"]) == (200, allowed)
    assert plane[0].metric('istiodlite_webhook_reviews_total{allowed="false"}') == 1


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        (b"nonsense", "/validate", 400),
        (b"[" * 100_000, "/validate", 400),
        (b"{}", "/validate", 400),
        (b"{}", "/other", 404),
    ],
)
def test_what_is_no_review_is_answered_with_what_is_wrong(
    plane: tuple[ControlPlane, int], body: bytes, path: str, status: int
) -> None:
    with connected(plane) as connection:
        found, text = post(connection, body, path)
        assert found == status
        assert text
    with connected(plane) as connection:
        assert post(connection, asked(policy({})))[0] == 200


def test_a_body_without_end_is_cut_off(plane: tuple[ControlPlane, int]) -> None:
    with connected(plane) as connection:
        connection.putrequest("POST", "/validate")
        connection.putheader("content-length", str(MAX_BODY * 4))
        connection.endheaders()
        try:
            for _ in range(MAX_BODY // 65536 + 64):
                connection.send(b" " * 65536)
        except OSError:
            return
        assert connection.getresponse().status == 413


def test_who_speaks_no_tls_only_ends_its_own_connection(plane: tuple[ControlPlane, int]) -> None:
    with socket.create_connection(("127.0.0.1", plane[1]), timeout=30) as raw:
        raw.sendall(b"POST /validate HTTP/1.1\r\n\r\n")
        assert b"200" not in raw.recv(1000)
    with connected(plane) as connection:
        assert post(connection, asked(policy({})))[0] == 200


def test_the_configuration_is_corrected_only_where_it_is_wrong() -> None:
    hook: dict[str, Any] = {"clientConfig": {"service": {}}, "failurePolicy": "Ignore"}
    found = {"metadata": {"resourceVersion": "3"}, "webhooks": [hook]}
    patch = corrections(found, b"root")
    assert patch[0] == {"op": "test", "path": "/metadata/resourceVersion", "value": "3"}
    assert {one["path"] for one in patch[1:]} == {
        "/webhooks/0/clientConfig/caBundle",
        "/webhooks/0/failurePolicy",
    }
    hook["clientConfig"]["caBundle"], hook["failurePolicy"] = patch[1]["value"], "Fail"
    assert corrections(found, b"root") == []
    assert corrections(found, b"other")[1]["op"] == "add"
