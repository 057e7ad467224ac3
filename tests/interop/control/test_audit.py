"""What the certificate authority writes down, and what it must never write."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from hbone.spiffe import SpiffeId
from hbone.svid import make_csr
from tests.interop.control.conftest import ControlPlane, agent_pod, pod, policy
from tests.support.serving import COMMAND, ROOT

WEB = "spiffe://cluster.local/ns/shop/sa/web"
PAGES = (
    "/metrics",
    "/debug/resources",
    "/debug/clients",
    "/debug/source",
    "/debug/errors",
    "/debug/conditions",
)
# Half a line of PEM: shorter ones could occur by chance.
_WINDOW = 32


def secret_texts(text: str) -> set[str]:
    """Every piece of the body of a PEM file that would betray it."""
    body = "".join(line for line in text.splitlines() if not line.startswith("-----"))
    return {body[at : at + _WINDOW] for at in range(len(body) - _WINDOW + 1)}


def private_files(data: Path) -> list[Path]:
    return [
        file
        for file in data.rglob("*")
        if file.is_file() and "PRIVATE KEY" in file.read_text(errors="replace")
    ]


def rotate(control: ControlPlane, *more: str) -> None:
    command = [*COMMAND, "rotate-root", "--data", str(control.data), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "PRIVATE KEY" not in done.stdout + done.stderr


def test_each_issuance_is_a_line_with_caller_identity_serial_and_end(control: ControlPlane) -> None:
    leaves = []
    for _ in range(3):
        csr, _ = make_csr(SpiffeId.parse(WEB))
        chain = control.agent().create_certificate(csr, WEB).cert_chain
        leaves.append(x509.load_pem_x509_certificate(chain[0].encode()))
    lines = [line for line in control.log.splitlines() if "issued identity=" in line]
    assert len(lines) == 3
    for leaf, line in zip(leaves, lines, strict=True):
        assert f"identity={WEB} caller=istio-system/ztunnel (pod ztunnel-n1 on n1) peer=" in line
        assert f"serial={leaf.serial_number:x} not_after={leaf.not_valid_after_utc.isoformat()}" in line


@pytest.fixture
def talkative(tmp_path: Path) -> Iterator[ControlPlane]:
    """One that writes all it can."""
    plane = ControlPlane(tmp_path, "--log-level", "debug", "--open-debug")
    plane.put(agent_pod("n1"), pod("shop", "web", "10.1.0.5"), policy("shop", "p", rules=[{}]))
    plane.start()
    yield plane
    assert plane.stop() == 0, plane.log


def test_no_key_and_no_token_is_ever_written(talkative: ControlPlane) -> None:
    control = talkative
    csr, key = make_csr(SpiffeId.parse(WEB))
    token = control.token()
    agent = control.agent(token=token)
    agent.create_certificate(csr, WEB)
    for attempt, identity in ((csr.replace("M", "x"), WEB), (csr, WEB.replace("web", "db"))):
        with pytest.raises(grpc.RpcError):
            agent.create_certificate(attempt, identity)
    with pytest.raises(grpc.RpcError):
        control.agent(token=token[:-4] + "aaaa").create_certificate(csr, WEB)
    with agent.stream() as stream:
        stream.start()
        stream.until(lambda s: all(s.versions.values()))
    before = private_files(control.data)
    rotate(control)
    rotate(control, "--now")
    agent.create_certificate(csr, WEB)
    written = control.log + "".join(control.get(page)[1] for page in PAGES)
    assert "issued identity=" in written
    keys = [
        key.decode(),
        *(file.read_text() for file in {*before, *private_files(control.data)} if file.exists()),
    ]
    assert len(keys) >= 3, "the client's, the root's and the tokens'"
    for text in keys:
        assert not any(piece in written for piece in secret_texts(text))
    assert token.rpartition(".")[2] not in written, "the signature is what makes a token"
    assert "PRIVATE KEY" not in written
    assert not re.search(r"eyJ[\w-]{20,}\.[\w-]{20,}", written), "no other token either"


def test_what_is_secret_is_readable_by_its_owner_only(control: ControlPlane) -> None:
    rotate(control)
    files = private_files(control.data)
    assert len(files) >= 3, "root, next root, token key"
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    for folder in {control.data, *(file.parent for file in files)}:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
