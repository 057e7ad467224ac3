"""A cursor over plain values that knows its path, so that every refusal can name the field."""

import ipaddress
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TypeVar

from istiodlite.manifests.errors import FieldError

_T = TypeVar("_T", bound=str)

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*\Z")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")


def is_dns_label(text: str) -> bool:
    """RFC 1123 label: at most 63 of a-z, 0-9 and '-'."""
    return _DNS_LABEL.match(text) is not None


def is_dns_name(text: str) -> bool:
    """RFC 1123 subdomain: labels joined by dots, at most 253."""
    return len(text) <= 253 and _DNS_NAME.match(text) is not None


def is_label_key(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    return _LABEL_NAME.match(name) is not None and (not slash or is_dns_name(prefix))


def is_label_value(text: str) -> bool:
    return text == "" or _LABEL_NAME.match(text) is not None


def shown(value: object) -> str:
    """A value as an error message shows it: short, on one line."""
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


class Field:
    """One value of a document. Absent values are None; accessors raise FieldError naming the path."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "") -> None:
        self.value = value
        self.path = path

    def error(self, message: str) -> FieldError:
        return FieldError(self.path, message)

    def fail(self, message: str) -> NoReturn:
        raise self.error(message)

    @property
    def present(self) -> bool:
        return self.value is not None

    def _mapping(self) -> dict[str, Any]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            self.fail(f"must be a mapping, not {shown(self.value)}")
        return self.value

    def __getitem__(self, key: str) -> "Field":
        return Field(self._mapping().get(key), f"{self.path}.{key}" if self.path else key)

    def has(self, key: str) -> bool:
        """True also for an explicit null."""
        return key in self._mapping()

    def only(self, *known: str) -> "Field":
        """Refuses unknown keys: a misspelt field must never widen a policy silently."""
        for key in self._mapping():
            if key not in known:
                self[key].fail(f"unknown field; known here: {', '.join(known)}")
        return self

    def entries(self) -> Iterator[tuple[str, "Field"]]:
        for key in self._mapping():
            yield key, self[key]

    def items(self) -> list["Field"]:
        """The elements of a list; absent: none."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            self.fail(f"must be a list, not {shown(self.value)}")
        return [Field(value, f"{self.path}[{index}]") for index, value in enumerate(self.value)]

    def text(self, default: str | None = None) -> str:
        if self.value is None:
            if default is None:
                self.fail("is missing; add it")
            return default
        if not isinstance(self.value, str):
            self.fail(f"must be text; write {shown(self.value)} in quotes")
        return self.value

    def integer(self, low: int, high: int, default: int | None = None) -> int:
        value = self.value
        if value is None:
            if default is None:
                self.fail("is missing; add it")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"must be a whole number, not {shown(value)}")
        if not low <= value <= high:
            self.fail(f"must be from {low} to {high}, not {value}")
        return value

    def port(self, default: int | None = None) -> int:
        return self.integer(1, 65535, default)

    def boolean(self, default: bool = False) -> bool:
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            self.fail(f"must be true or false, not {shown(self.value)}")
        return self.value

    def choice(self, known: tuple[_T, ...], default: _T | None = None) -> _T:
        text = self.text(default)
        for option in known:
            if option == text:
                return option
        raise self.error(f"must be one of {', '.join(known)}, not {shown(text)}")

    def texts(self) -> tuple[str, ...]:
        """A list of non-empty texts."""
        out = []
        for item in self.items():
            text = item.text()
            if not text:
                item.fail("must not be empty; remove it")
            out.append(text)
        return tuple(out)

    def text_map(self) -> dict[str, str]:
        return {key: field.text("") for key, field in self.entries()}

    def labels(self) -> dict[str, str]:
        """A map of valid label keys and values."""
        out = {}
        for key, field in self.entries():
            if not is_label_key(key):
                field.fail("is not a valid label key; use letters, digits, '-', '_', '.' (at most 63)")
            value = field.text("")
            if not is_label_value(value):
                field.fail(f"{shown(value)} is not a valid label value; use letters, digits, '-', '_', '.'")
            out[key] = value
        return out

    def ip(self) -> str:
        """An address in canonical text."""
        text = self.text()
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            self.fail(f"{shown(text)} is not an IP address")

    def ip_or_cidr(self) -> str:
        """The text itself, known to be an address or a network (host bits are tolerated)."""
        text = self.text()
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            self.fail(f"{shown(text)} is not an IP address or CIDR like 10.0.0.0/8")
        return text
