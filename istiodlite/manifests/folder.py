"""Manifest texts, files and folders to objects and errors. Reads files; changes nothing."""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from istiodlite.manifests.errors import FieldError, ManifestError, ReadError
from istiodlite.manifests.fields import Field
from istiodlite.manifests.kinds import key_of, kind_of, parse_object
from istiodlite.manifests.reader import read_documents
from istiodlite.objects import KubeObject, ObjectKey

DEFAULT_SIZE_LIMIT = 4 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Loaded:
    """One object with where it came from; `body` is the document as plain values, for those who need
    fields that the typed object leaves out (it takes no part in comparisons)."""

    key: ObjectKey
    object: KubeObject
    file: str
    document: int
    body: Mapping[str, Any] = field(compare=False, repr=False, default_factory=dict)


def manifest_files(folder: Path) -> list[Path]:
    """The files of a folder that count, sorted by name; names starting with "." or "_" do not.

    Raises OSError if the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(SUFFIXES)]
    return [folder / name for name in sorted(names) if name[0] not in "._"]


def load_folder(
    path: Path | str, *, size_limit: int = DEFAULT_SIZE_LIMIT
) -> tuple[list[Loaded], list[ManifestError]]:
    """Every object of a folder (or of one file) and every error.

    An error in one object does not hide the others. Of two objects with the same key the one in the first
    file by name counts; the other is an error. Raises OSError if the path itself cannot be read.
    """
    path = Path(path)
    loaded: list[Loaded] = []
    errors: list[ManifestError] = []
    for file in [path] if path.is_file() else manifest_files(path):
        objects, found = load_file(file, size_limit=size_limit)
        loaded.extend(objects)
        errors.extend(found)
    unique, duplicates = without_duplicates(loaded)
    return unique, errors + duplicates


def load_file(
    file: Path, *, size_limit: int = DEFAULT_SIZE_LIMIT
) -> tuple[list[Loaded], list[ManifestError]]:
    """As `load_folder` for one file; a file that cannot be read is an error of that file."""
    try:
        status, data = _read(file, size_limit)
    except OSError as error:
        return [], [_file_error(file.name, f"cannot be read: {error.strerror}; check its permissions")]
    if not stat.S_ISREG(status.st_mode):
        return [], [_file_error(file.name, "is not a regular file; remove it")]
    if status.st_size > size_limit or len(data) > size_limit:
        message = f"{status.st_size} bytes is over the limit of {size_limit}; split the file"
        return [], [_file_error(file.name, message)]
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return [], [_file_error(file.name, f"is not UTF-8 (byte {error.start}); save it as UTF-8")]
    return load_text(text, file.name)


def _read(file: Path, size_limit: int) -> tuple[os.stat_result, bytes]:
    """Status and, for a regular file within the limit, its bytes (one more than the limit at most)."""
    # Not blocking: opening a pipe that someone left in the folder would wait for ever.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > size_limit:
            return status, b""
        with open(descriptor, "rb", closefd=False) as stream:
            return status, stream.read(size_limit + 1)
    finally:
        os.close(descriptor)


def _file_error(file: str, message: str, document: int = 0) -> ManifestError:
    return ManifestError(file, document, None, "", message)


def load_text(text: str, file: str) -> tuple[list[Loaded], list[ManifestError]]:
    """As `load_file` for a text; `file` names it in errors (a name ending in .json is read as JSON)."""
    loaded: list[Loaded] = []
    errors: list[ManifestError] = []
    try:
        for number, document in read_documents(text, as_json=file.endswith(".json")):
            for body in _unpack_list(document):
                _load_one(body, file, number, loaded, errors)
    except ReadError as error:
        errors.append(_file_error(file, error.message, error.document))
    unique, duplicates = without_duplicates(loaded)
    return unique, errors + duplicates


def _unpack_list(document: Any) -> list[Any]:
    if isinstance(document, dict) and document.get("kind") == "List":
        items = document.get("items")
        if isinstance(items, list):
            return items
    return [document]


def _load_one(body: Any, file: str, number: int, loaded: list[Loaded], errors: list[ManifestError]) -> None:
    key: ObjectKey | None = None
    document = Field(body)
    try:
        if not isinstance(body, dict):
            document.fail("is not a Kubernetes object; write apiVersion, kind and metadata")
        kind = kind_of(document)
        key = key_of(kind, document)
        loaded.append(Loaded(key, parse_object(kind, document), file, number, body))
    except FieldError as error:
        errors.append(ManifestError(file, number, key, error.field, error.message))


def without_duplicates(loaded: Iterable[Loaded]) -> tuple[list[Loaded], list[ManifestError]]:
    """Keeps the first object of each key, in the given order; the rest become errors."""
    kept: dict[ObjectKey, Loaded] = {}
    errors = []
    for item in loaded:
        first = kept.setdefault(item.key, item)
        if first is not item:
            where = f"{first.file} document {first.document}"
            message = f"is also defined in {where}, which is the one used; remove one of them"
            errors.append(ManifestError(item.file, item.document, item.key, "", message))
    return list(kept.values()), errors
