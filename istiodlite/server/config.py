"""Everything `istiodlite serve` can be told, with defaults."""

from dataclasses import dataclass
from pathlib import Path

from istiodlite.kube import Access
from istiodlite.manifests import DEFAULT_SIZE_LIMIT
from istiodlite.registry import MeshConfig


class StartError(Exception):
    """The server cannot start (or go on); one line that says what to do."""


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """Objects come from a cluster. `cacerts` is where the secret of a plugged-in CA is mounted, if it is."""

    access: Access
    cacerts: Path | None = None


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Objects come from the folder `objects`, with root and token key in `data`, or from `kube`.

    `listen`, `status` and `webhook` (None: off) are (host, port); times are seconds; sizes are bytes.

    `trusted_node_accounts` are (namespace, service account) that may ask for identities of their node.
    """

    mesh: MeshConfig
    objects: Path | None = None
    data: Path | None = None
    kube: KubeConfig | None = None
    listen: tuple[str, int] = ("0.0.0.0", 15012)
    status: tuple[str, int] = ("0.0.0.0", 15014)
    webhook: tuple[str, int] | None = None
    extra_names: tuple[str, ...] = ()
    trusted_node_accounts: frozenset[tuple[str, str]] = frozenset({("istio-system", "ztunnel")})
    debounce_quiet: float = 0.1
    debounce_longest: float = 10.0
    size_limit: int = DEFAULT_SIZE_LIMIT
    open_debug: bool = False


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, [V6]:PORT or :PORT. Raises ValueError with advice."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'"{text}" is not HOST:PORT, like 0.0.0.0:15012')
    host = host.removeprefix("[").removesuffix("]")
    return host or "0.0.0.0", int(port)
