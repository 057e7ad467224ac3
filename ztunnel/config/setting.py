"""What a row of the table of settings says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: the variable, where it goes, how it is read, what it means."""

    env: str
    field: str
    parse: Callable[[str], Any]
    default: str
    doc: str
    also: tuple[str, ...] = ()
