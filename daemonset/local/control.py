"""The supervisor's socket: one JSON object per line. The asking end; `controlserver` is the other.

Request: {"command": "apply", "objects": [...], "nodes": N|null, "wait": seconds} | {"command": "status"} |
{"command": "upgrade", "nodes": [name, ...]} | {"command": "stop"}. Replies: any number of {"progress": text}, then {"done": value} or {"error": [text]}.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


class NoSupervisor(Exception):
    """Nobody listens on the socket."""


class Refused(Exception):
    """The supervisor refused a request; `errors` are lines for the user."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


def ask(path: Path, request: Mapping[str, Any], progress: Callable[[str], None] = lambda _: None) -> Any:
    """Sends a request and returns what the supervisor answers. Raises NoSupervisor or Refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoSupervisor(str(path)) from None
        for reply in _replies(connection, request):
            if "progress" in reply:
                progress(reply["progress"])
            elif "error" in reply:
                raise Refused(reply["error"])
            else:
                return reply["done"]
    raise NoSupervisor("the supervisor went away; see its log")


def _replies(connection: socket.socket, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Sends the request, gives each reply; ends when the supervisor does, killed in the middle or not."""
    with connection.makefile("r") as lines, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(json.dumps(request).encode() + b"\n")
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
