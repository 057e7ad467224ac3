"""The issuer where Kubernetes keeps it: a plugged-in CA in mounted files, or the secret `istio-ca-secret`.

Names, keys and formats are Istio's, so that a cluster can change from istiod to this control plane, or back,
with the same root and no certificate becoming invalid.
"""

import base64
import binascii
import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istiodlite.ca.authority import Authority, SigningKey, is_old, self_signed
from istiodlite.ca.files import DataError
from istiodlite.kube.client import ApiError, KubeClient

SECRET = "istio-ca-secret"  # noqa: S105  (its name)
SECRET_TYPE = "istio.io/ca-root"  # noqa: S105  (its type)
CERT, KEY, CHAIN, ROOT = "ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"
# Beside Istio's entries while one root replaces another; see istiodlite.ca.secretroots.
NEXT_KEY, NEXT_CERT = "next-ca-key.pem", "next-ca-cert.pem"
OLD_ROOTS, CROSS = "old-root-certs.pem", "cross-cert.pem"
# Names of a plugged-in CA, and those that kubernetes.io/tls secrets (cert-manager) have for the same.
_PLUGGED = {CERT: "tls.crt", KEY: "tls.key", ROOT: "ca.crt"}

_log = logging.getLogger("istiodlite.ca")


def plugged_in(folder: Path) -> dict[str, bytes] | None:
    """The files of a plugged-in CA under Istio's names; None if there are none. Raises DataError if some of
    them are missing."""
    try:
        present = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; make the CA's files readable") from None
    for names in ({name: name for name in _PLUGGED}, _PLUGGED):
        if any(there in present for there in names.values()):
            missing = [there for there in names.values() if there not in present]
            if missing:
                raise DataError(f"{folder}: {', '.join(missing)} missing; add it, or remove the whole folder")
            found = {ours: present[there] for ours, there in names.items()}
            return found | {CHAIN: present.get(CHAIN, b"")}
    return None


def authority_of(
    files: Mapping[str, bytes], trust_domain: str, where: str, now: datetime.datetime
) -> Authority:
    """An issuer of ca-cert.pem, ca-key.pem, cert-chain.pem (may be empty) and root-cert.pem.

    Raises DataError unless the key fits, the issuer may sign, and it leads to one of the roots.
    """
    key = key_of(files[KEY], where)
    issuer, *above = certificates_of(files[CERT], f"{where}: {CERT}")
    above += certificates_of(files[CHAIN], f"{where}: {CHAIN}") if files.get(CHAIN, b"").strip() else []
    roots = certificates_of(files[ROOT], f"{where}: {ROOT}")
    if issuer.public_key() != key.public_key():
        raise DataError(f"{where}: {KEY} does not belong to {CERT}; put a matching pair there")
    _check_issuer(issuer, where, now)
    intermediates = _path(issuer, above, roots, where)
    return Authority(
        trust_domain,
        key,
        issuer,
        b"".join(_pem(root) for root in roots),
        tuple(_pem(one) for one in intermediates),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_of(data: bytes, where: str) -> SigningKey:
    """An issuer's private key. Raises DataError."""
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DataError(f"{where}: {KEY} is not an unencrypted private key in PEM; replace it") from None
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
        raise DataError(f"{where}: {KEY} is neither an RSA nor an elliptic curve key; replace it")
    return key


def certificates_of(data: bytes, where: str) -> list[x509.Certificate]:
    """At least one. Raises DataError."""
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise DataError(f"{where} holds no certificates in PEM; replace it") from None


def _check_issuer(issuer: x509.Certificate, where: str, now: datetime.datetime) -> None:
    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        may_sign = basic.ca
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        may_sign = may_sign and usage.key_cert_sign
    except x509.ExtensionNotFound as error:
        may_sign = error.oid == x509.KeyUsage.oid and may_sign
    if not may_sign:
        raise DataError(f"{where}: {CERT} may not sign certificates; issue it as a CA")
    if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
        until = issuer.not_valid_after_utc.isoformat()
        raise DataError(f"{where}: {CERT} is valid only until {until}; renew it")


def _path(
    issuer: x509.Certificate, above: list[x509.Certificate], roots: list[x509.Certificate], where: str
) -> list[x509.Certificate]:
    """What peers need between a leaf and a root, the issuer first; nothing if it is a root itself."""
    path: list[x509.Certificate] = []
    current = issuer
    while current not in roots:
        path.append(current)
        if any(_signed(current, root) for root in roots):
            return path
        following = next((one for one in above if one not in path and _signed(current, one)), None)
        if following is None:
            raise DataError(f"{where}: {CERT} does not lead to {ROOT}; complete {CHAIN} or the roots")
        current = following
    return path


def _signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def new_secret(authority: Authority, namespace: str) -> dict[str, Any]:
    """The secret of a self-signed root, as istiod writes it."""
    key = authority.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = {CERT: authority.roots_pem, KEY: key, CHAIN: b"", ROOT: authority.roots_pem, "key.pem": b""}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": SECRET_TYPE,
        "metadata": {"name": SECRET, "namespace": namespace},
        "data": encoded(files),
    }


def encoded(files: Mapping[str, bytes]) -> dict[str, str]:
    """Files as the data of a secret."""
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def files_of(secret: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """The files in a secret; the root defaults to the issuer, as in secrets of old istiods. DataError."""
    data = secret.get("data")
    data = data if isinstance(data, dict) else {}
    try:
        files = {name: base64.b64decode(text, validate=True) for name, text in data.items() if text}
    except (binascii.Error, TypeError, ValueError):
        raise DataError(
            f"{where}: its data is not base64; delete the secret to have a new root made"
        ) from None
    missing = [name for name in (CERT, KEY) if name not in files]
    if missing:
        raise DataError(
            f"{where}: {', '.join(missing)} missing; restore the secret, or delete it for a new root"
        )
    return {CHAIN: b"", ROOT: files[CERT], **files}


async def load_or_create_secret(
    client: KubeClient, namespace: str, trust_domain: str, now: datetime.datetime
) -> Authority:
    """The root in the secret, made if missing, issued again with its key when old. Of several replicas that
    start together, one creates and the others take what is there. Raises DataError, ApiError."""
    path, where = f"/api/v1/namespaces/{namespace}/secrets", f"secret {namespace}/{SECRET}"
    for _ in range(3):
        try:
            return await _current(client, path, where, trust_domain, now)
        except ApiError as error:
            if error.code == 409:
                continue
            if error.code != 404:
                raise
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self_signed(key, trust_domain, now)
        made = Authority(trust_domain, key, certificate, _pem(certificate))
        try:
            await client.send("POST", path, new_secret(made, namespace))
        except ApiError as error:
            if error.code != 409:
                raise
            continue
        _log.info("made a new root in %s", where)
        return made
    raise ApiError(409, "Conflict", f"{where}: others keep changing it; see who does")


async def _current(
    client: KubeClient, path: str, where: str, trust_domain: str, now: datetime.datetime
) -> Authority:
    secret = await client.get(f"{path}/{SECRET}")
    files = files_of(secret, where)
    (certificate, *_) = certificates_of(files[CERT], f"{where}: {CERT}")
    # Only one that signed itself is ours to issue again, and not one that is being replaced.
    changing = NEXT_CERT in files or OLD_ROOTS in files
    if changing or not is_old(certificate, now) or certificate.issuer != certificate.subject:
        return authority_of(files, trust_domain, where, now)
    key = key_of(files[KEY], where)
    renewed = self_signed(key, trust_domain, now, certificate.subject)
    made = Authority(trust_domain, key, renewed, _pem(renewed))
    body = {**secret, "data": {**secret["data"], **new_secret(made, "")["data"]}}
    await client.send("PUT", f"{path}/{SECRET}", body)
    _log.info("issued the root in %s again with the same key", where)
    return made
