"""Bearer tokens for the local mesh: ES256 JWTs with the claims of Kubernetes' bound tokens.

Where there is no Kubernetes API to review tokens, the control plane signs its own with a key of its own.
"""

import datetime
import secrets
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from istiodlite.ca.authority import load_or_create_key
from istiodlite.ca.caller import Caller
from istiodlite.ca.files import locked_directory

AUDIENCE = "istio-ca"
ISSUER = "https://istiodlite.istio-system.svc"
TOKEN_KEY = "token-key.pem"  # noqa: S105  (a file name)
DEFAULT_TTL = 43200
MAX_TOKEN_BYTES = 16 * 1024
_LEEWAY = 60.0


class TokenError(Exception):
    """The token is not acceptable; the text is for the log, never for the caller."""


def load_or_create_token_key(directory: Path | str) -> ec.EllipticCurvePrivateKey:
    """The signing key kept beside the root. Raises DataError."""
    directory = Path(directory)
    with locked_directory(directory):
        return load_or_create_key(directory / TOKEN_KEY)


def mint(
    key: ec.EllipticCurvePrivateKey, caller: Caller, now: datetime.datetime, ttl: int = DEFAULT_TTL
) -> str:
    """A token for `caller`, valid from now for `ttl` seconds."""
    issued = int(now.timestamp())
    claims: dict[str, Any] = {
        "namespace": caller.namespace,
        "serviceaccount": {"name": caller.service_account},
    }
    if caller.node:
        claims["node"] = {"name": caller.node}
    if caller.pod:
        claims["pod"] = {"name": caller.pod, "uid": caller.pod_uid}
    payload = {
        "iss": ISSUER,
        "sub": f"system:serviceaccount:{caller.namespace}:{caller.service_account}",
        "aud": [AUDIENCE],
        "iat": issued,
        "nbf": issued,
        "exp": issued + ttl,
        "jti": secrets.token_hex(16),
        "kubernetes.io": claims,
    }
    return jwt.encode(payload, key, algorithm="ES256")


def verify(token: str, key: ec.EllipticCurvePublicKey, now: datetime.datetime) -> Caller:
    """The caller of a valid token. Raises TokenError."""
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError(f"token of {len(token)} bytes is too long")
    try:
        # Times are compared below, with the caller's clock.
        options: Any = {
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
            "require": ["exp", "sub", "aud"],
        }
        claims = jwt.decode(
            token, key, algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER, options=options
        )
    except jwt.PyJWTError as error:
        raise TokenError(f"token refused: {error}") from None
    _check_times(claims, now.timestamp())
    return _caller(claims)


def _check_times(claims: dict[str, Any], now: float) -> None:
    expires, begins = claims.get("exp"), claims.get("nbf", 0)
    if not isinstance(expires, int) or not isinstance(begins, int):
        raise TokenError("token refused: exp and nbf must be numbers")
    if now >= expires:
        raise TokenError("token refused: expired")
    if now + _LEEWAY < begins:
        raise TokenError("token refused: not valid yet")


def _caller(claims: dict[str, Any]) -> Caller:
    kubernetes = claims.get("kubernetes.io")
    if not isinstance(kubernetes, dict):
        raise TokenError("token refused: no kubernetes.io claims")

    def text(*path: str) -> str:
        value: Any = kubernetes
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, str) else ""

    caller = Caller(
        namespace=text("namespace"),
        service_account=text("serviceaccount", "name"),
        pod=text("pod", "name"),
        pod_uid=text("pod", "uid"),
        node=text("node", "name"),
    )
    if not caller.namespace or not caller.service_account:
        raise TokenError("token refused: no service account in it")
    if claims.get("sub") != f"system:serviceaccount:{caller.namespace}:{caller.service_account}":
        raise TokenError("token refused: subject and kubernetes.io claims differ")
    return caller
