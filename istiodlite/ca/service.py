"""CreateCertificate: authenticate, authorize, sign. Callers learn nothing from a refusal; the log has all."""

import datetime
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from istiodlite.api import ca_pb2
from istiodlite.ca.authority import Issuer
from istiodlite.ca.authorize import Denied, Trust, authorize
from istiodlite.ca.caller import Caller
from istiodlite.ca.issue import RequestError, chain, issue, lifetime_of, read_csr
from istiodlite.ca.pods import PodIndex
from istiodlite.ca.tokens import TokenError
from istiodlite.metrics import Metrics

PATH = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
OPAQUE = "request authenticate failure"

_log = logging.getLogger("istiodlite.ca")
Metadata = tuple[tuple[str, str | bytes], ...]


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Authenticator:
    """Bearer tokens of gRPC metadata to callers. `review` raises TokenError."""

    def __init__(self, review: Callable[[str], Awaitable[Caller]], metrics: Metrics) -> None:
        self._review = review
        self._metrics = metrics

    async def caller(self, metadata: Metadata, peer: str) -> Caller | None:
        """None, counted and logged, if there is no valid token."""
        values = [value for name, value in metadata if name == "authorization"]
        try:
            if len(values) != 1 or not isinstance(values[0], str):
                raise TokenError("no bearer token")
            scheme, _, token = values[0].partition(" ")
            if scheme.lower() != "bearer":
                raise TokenError("no bearer token")
            return await self._review(token.strip())
        except TokenError as error:
            self._metrics.authentication_failures.inc()
            _log.warning("refused peer=%s: %s", peer, error)
            return None


class CertificateService:
    """The method's handler; `pods` gives the current snapshot."""

    def __init__(
        self,
        authority: Issuer,
        authenticator: Authenticator,
        trust: Trust,
        pods: Callable[[], PodIndex],
        metrics: Metrics,
    ) -> None:
        self._authority = authority
        self._authenticator = authenticator
        self._trust = trust
        self._pods = pods
        self._metrics = metrics
        metrics.root_expiry.set_function(self._root_end)

    def _root_end(self) -> float:
        return self._authority.snapshot().certificate.not_valid_after_utc.timestamp()

    def handler(self) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
            response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
        )

    async def _create(
        self, request: ca_pb2.IstioCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ca_pb2.IstioCertificateResponse:
        self._metrics.csrs.inc()
        peer = context.peer()
        caller = await self._authenticator.caller(tuple(context.invocation_metadata() or ()), peer)
        if caller is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, OPAQUE)
            raise AssertionError("unreachable")
        answer = self.create(caller, request, peer)
        if isinstance(answer, ca_pb2.IstioCertificateResponse):
            return answer
        await context.abort(*answer)
        raise AssertionError("unreachable")

    def create(
        self, caller: Caller, request: ca_pb2.IstioCertificateRequest, peer: str
    ) -> ca_pb2.IstioCertificateResponse | tuple[grpc.StatusCode, str]:
        """For an authenticated caller: the response, or status and text of the refusal."""
        fields = request.metadata.fields
        requested = fields["ImpersonatedIdentity"].string_value if "ImpersonatedIdentity" in fields else None
        decision = authorize(caller, requested, self._pods(), self._trust)
        if isinstance(decision, Denied):
            self._metrics.refused_identities.inc()
            wanted = ascii(requested or "its own")[:200]
            _log.warning("refused caller=%s peer=%s identity=%s: %s", caller, peer, wanted, decision.reason)
            return grpc.StatusCode.UNAUTHENTICATED, OPAQUE
        try:
            key = read_csr(request.csr)
            lifetime = lifetime_of(request.validity_duration)
        except RequestError as error:
            _log.warning("refused caller=%s peer=%s identity=%s: %s", caller, peer, decision.identity, error)
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        authority = self._authority.snapshot()
        leaf = issue(authority, decision.identity, key, lifetime, utc_now())
        self._metrics.issued.inc()
        _log.info(
            "issued identity=%s caller=%s peer=%s serial=%x not_after=%s",
            decision.identity,
            caller,
            peer,
            leaf.serial_number,
            leaf.not_valid_after_utc.isoformat(),
        )
        return ca_pb2.IstioCertificateResponse(cert_chain=chain(authority, leaf))
