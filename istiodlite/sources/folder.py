"""What a folder of manifests says now, with the last good version of what is broken.

Each scan is compared with the one before, and yields one batch of changes that is applied as a whole. An
error in one object leaves that object as it was; an error that hides which object it concerns (syntax,
size, no name) leaves all former objects of that file which are not found any more.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from istiodlite.manifests import DEFAULT_SIZE_LIMIT, Loaded, ManifestError, load_file, without_duplicates
from istiodlite.manifests.folder import manifest_files
from istiodlite.objects import KubeObject, ObjectKey

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """`changes`: key -> object, or None for removed. `errors`: all that hold now; `new_errors`: of those,
    the ones not reported before."""

    changes: Mapping[ObjectKey, KubeObject | None]
    errors: tuple[ManifestError, ...]
    new_errors: tuple[ManifestError, ...]


@dataclass(slots=True)
class _File:
    stamp: _Stamp
    good: dict[ObjectKey, Loaded] = field(default_factory=dict)
    errors: list[ManifestError] = field(default_factory=list)


class Folder:
    """State of one folder over its scans. Not thread-safe: one scan at a time."""

    def __init__(self, path: Path, size_limit: int = DEFAULT_SIZE_LIMIT) -> None:
        self.path = path
        self._size_limit = size_limit
        self._files: dict[str, _File] = {}
        self._objects: dict[ObjectKey, KubeObject] = {}
        self._duplicates: list[ManifestError] = []
        self._reported: set[ManifestError] = set()

    def scan(self) -> Batch:
        """Reads files that changed since the last scan. A folder that cannot be listed is an error and
        changes nothing."""
        try:
            found = {path.name: path for path in manifest_files(self.path)}
        except OSError as error:
            message = f"cannot be listed: {error.strerror}; keeping what was read before"
            return self._batch({}, [ManifestError(str(self.path), 0, None, "", message)])
        changed = False
        for name in self._files.keys() - found.keys():
            del self._files[name]
            changed = True
        for name, path in found.items():
            changed |= self._read(name, path)
        if not changed:
            return self._batch({}, [*self._errors(), *self._duplicates])
        kept = [one for name in sorted(self._files) for one in self._files[name].good.values()]
        unique, self._duplicates = without_duplicates(kept)
        objects = {one.key: one.object for one in unique}
        changes: dict[ObjectKey, KubeObject | None] = {
            key: obj for key, obj in objects.items() if self._objects.get(key) != obj
        }
        changes.update((key, None) for key in self._objects.keys() - objects.keys())
        self._objects = objects
        return self._batch(changes, [*self._errors(), *self._duplicates])

    def _read(self, name: str, path: Path) -> bool:
        before = self._files.get(name)
        try:
            status = path.stat()
        except OSError:
            # Replaced or removed under our hands: the next scan sees what became of it.
            return False
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        if before is not None and before.stamp == stamp:
            return False
        loaded, errors = load_file(path, size_limit=self._size_limit)
        # Without the documents: they are several times the size of what is made of them.
        good = {one.key: replace(one, body={}) for one in loaded}
        if before is not None:
            undecided = any(error.key is None for error in errors)
            broken = {error.key for error in errors}
            for key, last in before.good.items():
                if key not in good and (undecided or key in broken):
                    good[key] = last
        self._files[name] = _File(stamp, good, errors)
        return True

    def _errors(self) -> list[ManifestError]:
        return [error for name in sorted(self._files) for error in self._files[name].errors]

    def _batch(self, changes: Mapping[ObjectKey, KubeObject | None], errors: list[ManifestError]) -> Batch:
        new = tuple(error for error in errors if error not in self._reported)
        self._reported = set(errors)
        return Batch(changes, tuple(errors), new)

    @property
    def objects(self) -> Mapping[ObjectKey, KubeObject]:
        return self._objects


def readable(path: Path) -> str:
    """Empty if `path` is a folder that can be listed, else why not."""
    if not path.is_dir():
        return f"{path}: no such folder; create it or name another with --objects"
    if not os.access(path, os.R_OK | os.X_OK):
        return f"{path}: cannot be listed; give read permission"
    return ""
