"""Makes the agent's parts of its settings. Each function stands alone; `agent` connects what they make."""

from __future__ import annotations

import os
from typing import Final

from hbone.engine import Engine, EngineConfig
from hbone.spiffe import SpiffeId
from hbone.svid import Svid
from istiodlite.api.discovery_pb2 import Node
from ztunnel.config import Config, Endpoint
from ztunnel.control_plane import ControlPlane
from ztunnel.identity.ca import CaClient
from ztunnel.identity.manager import CertificateRefused, IdentityManager
from ztunnel.store import Store
from ztunnel.xds.client import XdsClient
from ztunnel.xds.delta import DeltaSession

__all__ = ["engine_config", "identity_manager", "xds_client"]

_EVENT_HOLD: Final = 0.005
_SESSIONS_MOST: Final = 1 << 16  # the engine's limit


def engine_config(config: Config) -> EngineConfig:
    """What the byte engine is started with."""
    return EngineConfig(
        workers=config.workers or min(2, len(os.sched_getaffinity(0))),
        ipsec_mb=config.ipsec_mb,
        event_hold=_EVENT_HOLD,
        stream_window_max=config.stream_window,
        connection_window_max=config.connection_window,
        pool_streams=config.pool_max_streams,
        pool_idle_timeout=config.pool_idle,
        max_sessions=min(config.tls_sessions, _SESSIONS_MOST),
    )


def _node(config: Config) -> Node:
    node = Node(id=config.node_id)
    node.metadata.update(
        {
            "CLUSTER_ID": config.cluster_id,
            "NAME": config.pod_name,
            "NAMESPACE": config.pod_namespace,
            "INSTANCE_IPS": config.instance_ip,
            "NODE_NAME": config.node_name,
            **config.proxy_metadata,
        }
    )
    return node


def _control_plane(config: Config, endpoint: Endpoint, *, ca: bool) -> ControlPlane:
    return ControlPlane(
        endpoint,
        root_ca=config.ca_root_ca if ca else config.xds_root_ca,
        server_name=config.alt_ca_hostname if ca else config.alt_xds_hostname,
        token=config.auth_token,
        cluster_id=config.cluster_id,
        headers=config.ca_headers if ca else config.xds_headers,
    )


def xds_client(config: Config, store: Store) -> XdsClient | None:
    """Discovery; None without a control plane."""
    endpoint = config.xds_address
    if endpoint is None:
        return None
    session = DeltaSession(_node(config), on_demand=config.xds_on_demand)
    return XdsClient(_control_plane(config, endpoint, ca=False), session, store)


def identity_manager(config: Config, engine: Engine) -> IdentityManager:
    """Certificates, on their way into the engine."""
    endpoint = config.ca_address
    sink = _EngineIdentities(engine, config.trust_domain_aliases)
    if endpoint is None:
        return IdentityManager(_NoAuthority(), sink)
    ca = CaClient(_control_plane(config, endpoint, ca=True), ttl=config.secret_ttl)
    return IdentityManager(ca, sink)


class _EngineIdentities:
    """Hands certificates to the engine."""

    def __init__(self, engine: Engine, aliases: tuple[str, ...]) -> None:
        self._engine, self._aliases = engine, aliases

    def set_identity(self, number: int, svid: Svid) -> None:
        domains = tuple(dict.fromkeys((svid.identity.trust_domain, *self._aliases)))
        self._engine.set_identity(number, svid.chain_pem, svid.key_pem, svid.roots_pem, domains)

    def drop_identity(self, number: int) -> None:
        self._engine.drop_identity(number)


class _NoAuthority:
    async def issue(self, identity: SpiffeId) -> Svid:
        raise CertificateRefused(f"no certificate for {identity}: CA_ADDRESS is empty")
