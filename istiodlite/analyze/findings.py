"""Values that the checks give."""

import enum
from dataclasses import dataclass

from istiodlite.objects import ObjectKey


class Severity(enum.StrEnum):
    """ERROR: does not work, or lets through what it says it refuses. WARNING: most likely not what was meant.
    INFO: worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """`message` says what is wrong and what to do; `field` is a path inside the object, or empty."""

    severity: Severity
    code: str
    object: ObjectKey | None
    field: str
    message: str

    def __str__(self) -> str:
        where = str(self.object) if self.object is not None else "-"
        return f"{self.severity} {self.code} {where} {self.field or '-'}: {self.message}"

    @property
    def order(self) -> tuple[int, tuple[str, ...], str, str]:
        """Worst first, then by object."""
        return (list(Severity).index(self.severity), self.object or (), self.code, self.field)
