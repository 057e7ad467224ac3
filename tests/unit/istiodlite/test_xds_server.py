"""The stream's shell over loopback: who does not acknowledge is sent away, and nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from istiodlite.api import discovery_pb2
from istiodlite.ca.caller import Caller
from istiodlite.ca.service import Authenticator
from istiodlite.metrics import Metrics
from istiodlite.registry import ADDRESS_TYPE, MeshConfig
from istiodlite.server.config import ServeConfig
from istiodlite.xds import server as xds

LIMIT = 2.0
PATIENCE = 60.0


class Handlers(grpc.GenericRpcHandler):
    """The delta stream of one service."""

    def __init__(self, service: xds.DiscoveryService) -> None:
        self._handler = service.handler()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._handler if details.method == xds.PATH else None


async def review(_: str) -> Caller:
    return Caller("istio-system", "ztunnel")


class Client:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        method = channel.stream_stream(
            xds.PATH,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self.call = method(metadata=(("authorization", "Bearer x"),))

    async def ask(self) -> discovery_pb2.DeltaDiscoveryResponse:
        """The first request, and what is answered."""
        node = discovery_pb2.Node(id="ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local")
        await self.call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, node=node))
        found: discovery_pb2.DeltaDiscoveryResponse = await self.call.read()
        return found


async def _conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    service = xds.DiscoveryService(Authenticator(review, Metrics()), Metrics())
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        silent, good = Client(channel), Client(channel)
        answer = await good.ask()
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce=answer.nonce)
        await good.call.write(request)
        async with asyncio.timeout(PATIENCE):
            # Either stream may have come first.
            while not any(one["acks"] for client in service.clients() for one in client["types"].values()):
                await asyncio.sleep(0.01)
            monkeypatch.setattr(xds, "ACK_LIMIT", LIMIT)
            await silent.ask()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await silent.call.read()
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "not acknowledged" in (ended.value.details() or "")
        assert not good.call.done()
        assert len(service.clients()) == 1
        good.call.cancel()
    await server.stop(None)


def test_who_does_not_acknowledge_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_conversation(monkeypatch))


def test_what_is_documented_is_the_default() -> None:
    config = ServeConfig(MeshConfig())
    assert (config.debounce_quiet, config.debounce_longest) == (0.1, 10.0)
    assert xds.ACK_LIMIT == 120.0
