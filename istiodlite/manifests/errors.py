"""The one error type of manifest loading: says where, and what to do, in one line."""

from dataclasses import dataclass

from istiodlite.objects import ObjectKey


@dataclass(frozen=True, slots=True)
class ManifestError:
    """Something in a folder of manifests that cannot be used.

    `document` counts from 1; 0 means the file as a whole. `key` is None where the object's identity could
    not be read; then every former object of the file has to be considered undecided.
    """

    file: str
    document: int
    key: ObjectKey | None
    field: str
    message: str

    def __str__(self) -> str:
        parts = [self.file]
        if self.document:
            parts.append(f"document {self.document}")
        if self.key is not None:
            parts.append(str(self.key))
        if self.field:
            parts.append(self.field)
        return ": ".join([*parts, self.message])


class FieldError(ValueError):
    """A value that is not acceptable at `field` (dotted path inside one document)."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


class ReadError(ValueError):
    """The text cannot be read as documents (syntax, size, depth, aliases)."""

    def __init__(self, document: int, message: str) -> None:
        super().__init__(message)
        self.document = document
        self.message = message
