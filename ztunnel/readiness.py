"""What the agent still waits for before it may be called ready."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Readiness"]


class Readiness:
    """Named conditions, asked whenever somebody wants to know."""

    def __init__(self, *notes: Callable[[], str]) -> None:
        """`notes` give lines that go with every answer."""
        self._conditions: dict[str, Callable[[], bool]] = {}
        self._notes = notes

    def require(self, name: str, holds: Callable[[], bool]) -> None:
        """Not ready while `holds` says no."""
        self._conditions[name] = holds

    def pending(self) -> list[str]:
        """The names of what does not hold, in the order they were required."""
        return [name for name, holds in self._conditions.items() if not holds()]

    def answer(self) -> tuple[int, str]:
        """Status and text of /healthz/ready."""
        pending, notes = self.pending(), "".join(f"{note()}\n" for note in self._notes)
        if pending:
            return 500, f"not ready, pending: {', '.join(pending)}\n{notes}"
        return 200, f"ready\n{notes}"
