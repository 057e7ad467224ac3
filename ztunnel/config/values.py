"""How the text of a setting is read. Each function gives the value, or raises ValueError saying what it must be."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ebpf.variants import Choice
from ztunnel.enrol.choice import Setting as Enrol


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A gRPC server: `host:port`, with or without TLS."""

    host: str
    port: int
    tls: bool = True

    @property
    def target(self) -> str:
        """The address as grpcio takes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def text(value: str) -> str:
    """As it is."""
    return value


def required(value: str) -> str:
    """Any text but none."""
    if not value:
        raise ValueError("must be set")
    return value


def flag(value: str) -> bool:
    """true, 1, yes; false, 0, no."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.lower() not in known:
        raise ValueError("must be true or false")
    return known[value.lower()]


def port(value: str) -> int:
    """0 to 65535."""
    if not re.fullmatch(r"[0-9]{1,5}", value) or int(value) > 65535:
        raise ValueError("must be a port, 0 to 65535")
    return int(value)


def count(value: str) -> int:
    """A whole number of at most nine digits."""
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise ValueError("must be a whole number")
    return int(value)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def seconds(value: str) -> float:
    """`90`, `90s`, `1m30s`, `250ms`, `24h` in seconds."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value)
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError("must be a duration such as 90s, 5m or 24h")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def optional_seconds(value: str) -> float | None:
    """As `seconds`; None where nothing is given."""
    return seconds(value) if value else None


def endpoint(value: str) -> Endpoint | None:
    """`https://host:port`, `http://host:port` or `host:port`; None where nothing is given."""
    if not value:
        return None
    parts = urlsplit(value if "://" in value else f"https://{value}")
    try:
        port = parts.port or 15012
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ValueError("must be https://host:port, or empty to switch it off")
    return Endpoint(parts.hostname, port, parts.scheme == "https")


def path(value: str) -> Path:
    """A path."""
    return Path(value)


def optional_path(value: str) -> Path | None:
    """A path; None where nothing is given."""
    return Path(value) if value else None


def log_format(value: str) -> str:
    """plain or json."""
    if value not in ("plain", "json"):
        raise ValueError("must be plain or json")
    return value


def same_node(value: str) -> bool:
    """Whether traffic of one node is encrypted: always or never."""
    if value not in ("always", "never"):
        raise ValueError("must be always or never")
    return value == "always"


def capture_choice(value: str) -> Choice:
    """Which variant of capture."""
    try:
        return Choice(value)
    except ValueError:
        raise ValueError("must be auto, B or C") from None


def enrol(value: str) -> Enrol:
    """Who tells which pods are in."""
    try:
        return Enrol(value)
    except ValueError:
        raise ValueError("must be auto, zds or kubernetes") from None


def names(value: str) -> tuple[str, ...]:
    """Texts between commas."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


def ports(value: str) -> frozenset[int]:
    """Ports between commas."""
    return frozenset(port(name) for name in names(value))


def paths(value: str) -> tuple[Path, ...]:
    """Paths between commas."""
    return tuple(Path(name) for name in names(value))


def optional_flag(value: str) -> bool | None:
    """As `flag`; None where nothing is given."""
    return flag(value) if value else None
