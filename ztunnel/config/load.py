"""Reading the environment.

A value that cannot be read is a ConfigError of one line that names the variable and says what is expected;
nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ztunnel.config.model import Config
from ztunnel.config.setting import Setting
from ztunnel.config.settings import SETTINGS


class ConfigError(Exception):
    """A setting is missing or cannot be read. The text is one line for the operator."""


def load(environ: Mapping[str, str]) -> Config:
    """Read every setting; raises ConfigError naming the first one that cannot be read."""
    found = {row.field: _read(row, environ) for row in SETTINGS}
    found["ca_address"] = found["ca_address"] or found["xds_address"]
    config = Config(
        **found,
        xds_headers=_headers(environ, "XDS_HEADER_"),
        ca_headers=_headers(environ, "CA_HEADER_"),
        proxy_metadata=_proxy_metadata(environ),
    )
    _check(config)
    return config


def _read(row: Setting, environ: Mapping[str, str]) -> Any:
    name = next((name for name in (row.env, *row.also) if name in environ), row.env)
    text = environ.get(name, row.default).strip()
    try:
        return row.parse(text)
    except ValueError as error:
        got = f", not {text!r}" if text else ""
        raise ConfigError(f"{name} {error}{got}: {row.doc}") from None


def _check(config: Config) -> None:
    """Settings that exclude each other."""
    if config.dns_capture and config.xds_on_demand:
        raise ConfigError(
            "ISTIO_META_DNS_CAPTURE and XDS_ON_DEMAND exclude each other: names need all services; unset one"
        )
    if config.redirect_peer and config.same_node_encryption:
        raise ConfigError(
            "AMBIENT_REDIRECT_PEER is for direct connections: set SAME_NODE_ENCRYPTION=never, or unset it"
        )


def _headers(environ: Mapping[str, str], prefix: str) -> tuple[tuple[str, str], ...]:
    found = {name[len(prefix) :].lower(): value for name, value in environ.items() if name.startswith(prefix)}
    return tuple(sorted((name, value) for name, value in found.items() if name))


def _proxy_metadata(environ: Mapping[str, str]) -> dict[str, Any]:
    """`ISTIO_META_X` and `ISTIO_METAJSON_X` become key X of the xDS node's metadata."""
    metadata: dict[str, Any] = {}
    for name, value in sorted(environ.items()):
        if name.startswith("ISTIO_METAJSON_"):
            try:
                metadata[name.removeprefix("ISTIO_METAJSON_")] = json.loads(value)
            except ValueError as error:
                raise ConfigError(f"{name} must be JSON: {error}") from None
        elif name.startswith("ISTIO_META_"):
            metadata[name.removeprefix("ISTIO_META_")] = value
    return metadata
