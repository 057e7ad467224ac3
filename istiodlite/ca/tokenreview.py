"""Bearer tokens by the API server's word: TokenReview with our audience.

`caller_of` and `is_plausible` are pure; `TokenReviewer` asks. A node's agent brings the same token for each of
its identities, so an answer counts for a few seconds, and callers that come together share one question.
"""

import asyncio
import base64
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from istiodlite.ca.caller import Caller
from istiodlite.ca.tokens import AUDIENCE, MAX_TOKEN_BYTES, TokenError
from istiodlite.kube.client import ApiError, KubeClient

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
# A token may be revoked meanwhile (its pod deleted); who may have what is decided anew each time all the same.
REMEMBERED_SECONDS = 10.0
_REMEMBERED = 4096
_AT_ONCE = 16
_TIMEOUT = 10.0
_USER = "system:serviceaccount:"
_GROUP = "system:serviceaccounts"
_EXTRA = "authentication.kubernetes.io/"


def is_plausible(token: str, now: float, audience: str = AUDIENCE) -> str:
    """Empty if the API server should be asked, else why the token cannot be good. Verifies nothing: it keeps
    garbage, expired tokens and those for other audiences from costing a request. `now`: seconds since 1970."""
    if len(token) > MAX_TOKEN_BYTES:
        return f"token of {len(token)} bytes is too long"
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        audiences, expires = claims.get("aud", []), claims.get("exp", 0)
    except (ValueError, IndexError, AttributeError, RecursionError):
        return "not a service account token"
    if len(parts) != 3 or isinstance(expires, bool) or not isinstance(expires, (int, float)):
        return "not a service account token"
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        return f"not for audience {audience}; project the token with that audience"
    return "expired" if expires <= now else ""


def caller_of(review: Any, audience: str = AUDIENCE) -> Caller:
    """Who a reviewed token speaks for. Raises TokenError."""
    status = review.get("status") if isinstance(review, dict) else None
    if not isinstance(status, dict):
        raise TokenError("the review has no status")
    if status.get("authenticated") is not True:
        raise TokenError(f"token refused by the API server: {str(status.get('error') or 'not valid')[:200]}")
    # An authenticator that knows nothing of audiences lists none, and accepts tokens meant for others.
    if audience not in (status.get("audiences") or []):
        raise TokenError(f"the API server did not check the token for audience {audience}")
    user = status.get("user")
    user = user if isinstance(user, dict) else {}
    name = user.get("username")
    if not isinstance(name, str) or not name.startswith(_USER) or _GROUP not in (user.get("groups") or []):
        raise TokenError(f"{str(name)[:200]} is no service account")
    namespace, colon, account = name.removeprefix(_USER).partition(":")
    if not namespace or not colon or not account or ":" in account:
        raise TokenError(f"{name[:200]} is no service account")
    extra = user.get("extra")

    def bound(key: str) -> str:
        values = extra.get(_EXTRA + key) if isinstance(extra, dict) else None
        return str(values[0]) if isinstance(values, list) and len(values) == 1 else ""

    return Caller(namespace, account, bound("pod-name"), bound("pod-uid"), bound("node-name"))


class TokenReviewer:
    """`open_client` is called in the loop that asks; that loop owns the connection from then on."""

    def __init__(self, open_client: Callable[[], KubeClient], audience: str = AUDIENCE) -> None:
        self._open_client = open_client
        self._audience = audience
        self._client: KubeClient | None = None
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._asked: dict[bytes, asyncio.Task[Caller]] = {}

    async def caller(self, token: str) -> Caller:
        """Raises TokenError, also when the API server cannot be asked: nobody is let in then."""
        why = is_plausible(token, time.time(), self._audience)
        if why:
            raise TokenError(f"token refused: {why}")
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        task = self._asked.get(digest)
        if task is None:
            task = self._asked[digest] = asyncio.create_task(self._ask(digest, token))
            task.add_done_callback(lambda _: self._asked.pop(digest, None))
        # Shielded: one caller that goes away must not take the answer from the others.
        return await asyncio.shield(task)

    async def _ask(self, digest: bytes, token: str) -> Caller:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            async with asyncio.timeout(_TIMEOUT), self._turns:
                review = await self._post(body)
        except ApiError as error:
            advice = "; grant create on tokenreviews.authentication.k8s.io" if error.code == 403 else ""
            raise TokenError(f"the token cannot be reviewed: {error}{advice}") from None
        except TimeoutError:
            raise TokenError(f"the token was not reviewed within {_TIMEOUT:.0f} s") from None
        caller = caller_of(review, self._audience)
        self._known[digest] = (time.monotonic() + REMEMBERED_SECONDS, caller)
        self._known.move_to_end(digest)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return caller

    async def _post(self, body: Any) -> Any:
        if self._client is None:
            self._client = self._open_client()
        try:
            return await self._client.send("POST", PATH, body)
        except ApiError as error:
            if error.code == 0:
                self._client.renew()
            raise
