"""Text to plain values, with bounds: no aliases, no deep nesting, no duplicate keys, no custom tags.

Kubernetes manifests need none of these, and each can turn a small file into unbounded work or into a
document that says two things at once. Scalars follow YAML 1.2 (only true/false are booleans) plus
old-style octal, so `version: 1.10` is a number and is refused by the parsers where a text is due.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from istiodlite.manifests.errors import ReadError

MAX_DEPTH = 64
MAX_VALUES = 500_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_OCTAL = re.compile(r"0o?([0-7]+)\Z")
_HEX = re.compile(r"0x([0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, object] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_CORE = "tag:yaml.org,2002:"


def read_documents(text: str, *, as_json: bool = False) -> Iterator[tuple[int, Any]]:
    """Yields (document number from 1, value); empty documents are skipped.

    Raises ReadError with the number of the document that broke; the ones before were yielded.
    """
    return _read_json(text) if as_json else _read_yaml(text)


def _read_json(text: str) -> Iterator[tuple[int, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise ReadError(1, f'key "{key}" is given twice; keep one')
            out[key] = value
        return out

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ReadError(
            1, f"not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise ReadError(1, f"nested deeper than {MAX_DEPTH} levels; flatten it") from None
    if value is not None:
        yield 1, value


def _read_yaml(text: str) -> Iterator[tuple[int, Any]]:
    builder = _Builder(text)
    number = 0
    while True:
        number += 1
        try:
            present, value = builder.document()
        except yaml.YAMLError as error:
            raise ReadError(number, _syntax(error)) from None
        except _Refused as error:
            raise ReadError(number, str(error)) from None
        if not present:
            return
        if value is not None:
            yield number, value


def _syntax(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"not valid YAML: {problem}{where}"


class _Refused(ValueError):
    pass


class _Builder:
    """Builds values straight from the parser's events, so that bounds hold while reading."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        self._values = 0

    def document(self) -> tuple[bool, Any]:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                value = self._value(next(self._events), 0)
                next(self._events)  # the document's end
                return True, value
        return False, None

    def _value(self, event: Any, depth: int) -> Any:
        line = event.start_mark.line + 1
        self._values += 1
        if self._values > MAX_VALUES:
            raise _Refused(f"more than {MAX_VALUES} values in one file; split it")
        if depth > MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels (line {line}); flatten it")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event, line)
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(f'alias "*{event.anchor}" (line {line}); write the value out')
        if event.tag not in (None, "!", _CORE + "map", _CORE + "seq"):
            raise _Refused(f'tag "{event.tag}" (line {line}); remove it')
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(depth)
        return self._mapping(depth)

    def _sequence(self, depth: int) -> list[Any]:
        out = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            out.append(self._value(event, depth + 1))
        return out

    def _mapping(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise _Refused(f"a key that is not text (line {line}); use a plain word as key")
            # JSON has text keys only: `8080: STRICT` is the key "8080".
            key = event.value
            if key in out:
                raise _Refused(f'key "{key}" is given twice (line {line}); keep one')
            out[key] = self._value(next(self._events), depth + 1)
        return out


def _scalar(event: Any, line: int) -> Any:
    if event.tag not in (None, "!", _CORE + "str"):
        raise _Refused(f'tag "{event.tag}" (line {line}); remove it')
    if event.tag is not None or not event.implicit[0]:
        return event.value
    return _plain(event.value)


def _plain(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    first = text[0]
    if first not in "+-.0123456789" or len(text) > 40:
        return text
    if _INT.match(text):
        return int(text)
    if octal := _OCTAL.match(text):
        return int(octal[1], 8)
    if hexadecimal := _HEX.match(text):
        return int(hexadecimal[1], 16)
    if _FLOAT.match(text):
        return float(text)
    return text
