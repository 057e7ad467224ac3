"""What every variant has."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tests.bench.cases import Case
from tests.bench.testbed import Session


class Variant(ABC):
    """One way from client to server. `name` is the key in the results."""

    name: str

    def absent(self) -> str | None:
        """Why it cannot run here, or None."""
        return None

    def meaningless(self, case: Case) -> str | None:
        """Why this case says nothing about it, or None."""
        return "this row is about threads of ours" if case.workers else None

    def version(self) -> str | None:
        """What exactly is measured, for the machine facts."""
        return None

    @abstractmethod
    def start(self, session: Session, case: Case) -> None:
        """Starts its processes as the case wants them."""
