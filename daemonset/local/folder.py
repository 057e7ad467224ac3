"""A folder of files that is kept equal to a set of texts; every file is replaced atomically."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Readers see the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.new")  # readers of the folder pass names with a dot over
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(fd, "w") as file:
        file.write(text)
    temporary.replace(path)


def _text(obj: Mapping[str, Any]) -> str:
    """JSON, which is YAML too, and leaves no doubt about what is a string."""
    return json.dumps(obj, indent=1, ensure_ascii=False, default=str) + "\n"


class ObjectFolder:
    """Objects by file name; writes only what differs from what was written last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[str, Mapping[str, Any]] = {}
        path.mkdir(parents=True, exist_ok=True)

    def sync(self, objects: Mapping[str, Mapping[str, Any]]) -> int:
        """Makes the folder hold exactly these objects; returns the number of files changed."""
        changed = 0
        for name, obj in objects.items():
            if self._written.get(name) != obj:
                write_atomically(self.path / name, _text(obj))
                changed += 1
        for name in self._written.keys() - objects.keys():
            (self.path / name).unlink(missing_ok=True)
            changed += 1
        self._written = dict(objects)
        return changed
