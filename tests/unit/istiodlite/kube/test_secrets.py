"""The issuer from files and secrets in Istio's format."""

from __future__ import annotations

import base64
import datetime
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from hbone.spiffe import SpiffeId
from hbone.svid import from_issued, make_csr
from istiodlite.ca.authority import Authority, self_signed
from istiodlite.ca.files import DataError
from istiodlite.ca.issue import chain, issue, read_csr
from istiodlite.ca.secrets import authority_of, files_of, new_secret, plugged_in
from tests.support import pki

NOW = datetime.datetime.now(datetime.UTC)
HOUR = datetime.timedelta(hours=1)
IDENTITY = SpiffeId("cluster.local", "shop", "web")


def files(authority: pki.Authority, *, roots: bytes | None = None, above: bytes = b"") -> dict[str, bytes]:
    return {
        "ca-cert.pem": authority.pem,
        "ca-key.pem": pki.key_to_pem(authority.key),
        "cert-chain.pem": above,
        "root-cert.pem": roots if roots is not None else authority.roots_pem,
    }


def issued(authority: Authority) -> list[str]:
    """A certificate as an agent gets it, checked as the agent checks it."""
    csr, key = make_csr(IDENTITY)
    text = csr.decode() if isinstance(csr, bytes) else csr
    parts = chain(authority, issue(authority, IDENTITY, read_csr(text), HOUR, NOW))
    from_issued(IDENTITY, key, parts, now=NOW)
    return parts


def assert_verifies(parts: list[str], folder: Path) -> None:
    """By OpenSSL, as peers do: from the leaf over what is sent with it to a root."""
    names = ("leaf", "sent", "roots")
    for name, text in zip(names, (parts[0], "".join(parts[1:-1]), parts[-1]), strict=True):
        (folder / name).write_text(text)
    command = ["openssl", "verify", "-CAfile", str(folder / "roots"), "-no-CApath", "-no-CAstore"]
    if len(parts) > 2:
        command += ["-untrusted", str(folder / "sent")]
    done = subprocess.run([*command, str(folder / "leaf")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["ec-p256", "ec-p384", "rsa-2048"])
def test_a_self_signed_root_of_istiod_goes_on_signing(kind: Any, tmp_path: Path) -> None:
    authority = authority_of(files(pki.Authority.root(key=kind)), "cluster.local", "x", NOW)
    parts = issued(authority)
    assert len(parts) == 2
    assert_verifies(parts, tmp_path)


def test_a_plugged_in_intermediate_sends_its_chain_but_not_the_root(tmp_path: Path) -> None:
    root = pki.Authority.root()
    middle = root.intermediate()
    issuer = middle.intermediate("lower")
    above = middle.pem + root.pem
    authority = authority_of(files(issuer, roots=root.pem, above=above), "cluster.local", "x", NOW)
    parts = issued(authority)
    assert [part.count("BEGIN") for part in parts] == [1, 1, 1, 1]
    assert parts[-1].encode() == root.pem
    assert_verifies(parts, tmp_path)


def test_a_bundle_of_roots_is_handed_on_whole(tmp_path: Path) -> None:
    root, other = pki.Authority.root(), pki.Authority.root("other root")
    issuer = root.intermediate()
    authority = authority_of(files(issuer, roots=other.pem + root.pem), "cluster.local", "x", NOW)
    parts = issued(authority)
    assert parts[-1].count("BEGIN") == 2
    assert_verifies(parts, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, o: f | {"ca-key.pem": pki.key_to_pem(o.key)}, "ca-key.pem does not belong to ca-cert.pem"),
        (lambda f, o: f | {"ca-key.pem": b"nonsense"}, "is not an unencrypted private key"),
        (lambda f, o: f | {"ca-cert.pem": b"nonsense"}, "holds no certificates in PEM"),
        (lambda f, o: f | {"root-cert.pem": o.pem}, "ca-cert.pem does not lead to root-cert.pem"),
    ],
)
def test_an_issuer_that_cannot_work_is_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        authority_of(change(files(pki.Authority.root()), pki.Authority.root()), "cluster.local", "place", NOW)
    assert message in str(caught.value)
    assert str(caught.value).startswith("place")


def test_a_leaf_is_no_issuer() -> None:
    leaf = pki.as_authority(pki.Authority.root().leaf(dns=("x",)))
    with pytest.raises(DataError, match="may not sign certificates"):
        authority_of(files(leaf), "cluster.local", "x", NOW)


def test_an_expired_issuer_is_refused() -> None:
    with pytest.raises(DataError, match="is valid only until"):
        authority_of(files(pki.Authority.root()), "cluster.local", "x", NOW + datetime.timedelta(days=36500))


def test_the_secret_we_write_is_one_that_we_and_istiod_read() -> None:
    root = pki.Authority.root()
    authority = authority_of(files(root), "cluster.local", "x", NOW)
    secret = new_secret(authority, "istio-system")
    assert secret["type"] == "istio.io/ca-root"
    assert set(secret["data"]) == {"ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem", "key.pem"}
    again = authority_of(files_of(secret, "x"), "cluster.local", "x", NOW)
    assert again.certificate == authority.certificate
    assert again.roots_pem == authority.roots_pem


def test_a_root_issued_again_with_its_key_verifies_old_leaves(tmp_path: Path) -> None:
    root = pki.Authority.root()
    old = authority_of(files(root), "cluster.local", "x", NOW)
    renewed = self_signed(old.key, "cluster.local", NOW, old.certificate.subject)
    renewed_pem = renewed.public_bytes(serialization.Encoding.PEM).decode()
    assert_verifies([issued(old)[0], renewed_pem], tmp_path)


@pytest.mark.parametrize("data", [None, {}, {"ca-cert.pem": "eA=="}, {"ca-cert.pem": "%", "ca-key.pem": "%"}])
def test_a_secret_without_its_files_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="delete"):
        files_of({"data": data}, "secret x")


def test_cacerts_come_under_istios_or_cert_managers_names(tmp_path: Path) -> None:
    root = pki.Authority.root()
    assert plugged_in(tmp_path / "absent") is None
    assert plugged_in(tmp_path) is None
    for name, data in (("tls.crt", root.pem), ("tls.key", pki.key_to_pem(root.key)), ("ca.crt", root.pem)):
        (tmp_path / name).write_bytes(data)
    found = plugged_in(tmp_path)
    assert found is not None
    assert len(issued(authority_of(found, "cluster.local", "x", NOW))) == 2


def test_half_a_plugged_in_ca_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "ca-cert.pem").write_bytes(b"x")
    with pytest.raises(DataError, match=r"ca-key\.pem, root-cert\.pem missing"):
        plugged_in(tmp_path)


def test_a_key_in_the_secret_is_unencrypted_pkcs8() -> None:
    authority = authority_of(files(pki.Authority.root()), "cluster.local", "x", NOW)
    key = base64.b64decode(new_secret(authority, "istio-system")["data"]["ca-key.pem"])
    assert serialization.load_pem_private_key(key, None) is not None
