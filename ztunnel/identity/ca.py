"""The certificate authority over gRPC: IstioCertificateService/CreateCertificate.

The agent asks in the name of its pods (`ImpersonatedIdentity`); the CA grants what runs on this node.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import grpc
import trio

from hbone import svid as svids
from hbone.spiffe import SpiffeId
from istiodlite.api.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ztunnel.control_plane import ControlPlane
from ztunnel.identity.manager import CertificateRefused

__all__ = ["CaClient"]

_log = logging.getLogger("ztunnel.ca")
_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_SECONDS = 10.0


class CaClient:
    """Asks for certificates; the key pair is made here and its private part never leaves the process."""

    def __init__(self, control_plane: ControlPlane, *, ttl: float) -> None:
        self._control_plane, self._ttl = control_plane, ttl

    async def issue(self, identity: SpiffeId) -> svids.Svid:
        """One certificate for `identity`, checked; raises CertificateRefused."""
        return await trio.to_thread.run_sync(self._issue, identity, abandon_on_cancel=True)

    def _issue(self, identity: SpiffeId) -> svids.Svid:
        csr, key = svids.make_csr(identity)
        request = IstioCertificateRequest(csr=csr, validity_duration=int(self._ttl))
        request.metadata["ImpersonatedIdentity"] = str(identity)
        try:
            response = self._create(request)
            return svids.from_issued(identity, key, list(response.cert_chain), datetime.now(UTC))
        except grpc.RpcError as error:
            raise CertificateRefused(_reason(error)) from None
        except (OSError, ValueError) as error:
            raise CertificateRefused(str(error)) from None

    def _create(self, request: IstioCertificateRequest) -> IstioCertificateResponse:
        channel = self._control_plane.channel()
        call = channel.unary_unary(
            _METHOD,
            request_serializer=IstioCertificateRequest.SerializeToString,
            response_deserializer=IstioCertificateResponse.FromString,
        )
        answer: IstioCertificateResponse = call(
            request, timeout=_SECONDS, metadata=self._control_plane.metadata(), wait_for_ready=False
        )
        return answer


def _reason(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error)
