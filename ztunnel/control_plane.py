"""A gRPC channel to the control plane: TLS roots from a file that may change, a token that is read at each use.

Used by the xDS stream and by the certificate authority; both may be the same server or two.
Called from threads (grpcio has no trio loop); nothing here blocks for longer than reading a small file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc

from ztunnel.config import Endpoint

__all__ = ["ControlPlane"]

_MESSAGE_LIMIT = 200 * 1024 * 1024


class ControlPlane:
    """One server with the credentials to talk to it."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        root_ca: str,
        server_name: str,
        token: str,
        cluster_id: str,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.endpoint = endpoint
        self._root_ca, self._server_name, self._token = root_ca, server_name, token
        self._fixed = [("clusterid", cluster_id), *headers]
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._channel_roots: object = None

    def roots_version(self) -> object:
        """Changes when the root file does (also when it is swapped under a symlink)."""
        if self._root_ca == "SYSTEM" or "-----BEGIN" in self._root_ca:
            return self._root_ca
        try:
            stat = os.stat(self._root_ca)
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def channel(self) -> grpc.Channel:
        """The channel, made again when the roots changed; raises OSError when they cannot be read."""
        with self._lock:
            version = self.roots_version()
            if self._channel is None or version != self._channel_roots:
                if self._channel is not None:
                    self._channel.close()
                self._channel = self._open()
                self._channel_roots = version
            return self._channel

    def close(self) -> None:
        """Close the channel; the next use opens another."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Headers of one call, with the token as it stands in its file now."""
        token = self._read_token()
        return (("authorization", f"Bearer {token}"), *self._fixed) if token else tuple(self._fixed)

    def _read_token(self) -> str:
        if not self._token:
            return ""
        # A JWT has dots and no slash; anything else is a path.
        if "/" not in self._token and self._token.count(".") == 2:
            return self._token
        try:
            return Path(self._token).read_text().strip()
        except OSError as error:
            raise OSError(
                f"cannot read the token {self._token}: {error.strerror}; check AUTH_TOKEN"
            ) from None

    def _roots(self) -> bytes | None:
        if self._root_ca == "SYSTEM":
            return None
        if "-----BEGIN" in self._root_ca:
            return self._root_ca.encode()
        try:
            return Path(self._root_ca).read_bytes()
        except OSError as error:
            raise OSError(
                f"cannot read the roots {self._root_ca}: {error.strerror}; check XDS_ROOT_CA"
            ) from None

    def _open(self) -> grpc.Channel:
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
            ("grpc.max_send_message_length", _MESSAGE_LIMIT),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # The caller has a back-off of its own; grpc's must not be added to it.
            ("grpc.min_reconnect_backoff_ms", 5_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.enable_http_proxy", 0),
        ]
        if not self.endpoint.tls:
            return grpc.insecure_channel(self.endpoint.target, options=options)
        if self._server_name:
            options.append(("grpc.ssl_target_name_override", self._server_name))
        credentials = grpc.ssl_channel_credentials(root_certificates=self._roots())
        return grpc.secure_channel(self.endpoint.target, credentials, options=options)
