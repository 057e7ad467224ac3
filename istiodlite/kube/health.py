"""How current the copy of a kind is. Pure; times are seconds of one steady clock."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Health:
    """Of one kind. `current` while a watch stands (or the kind is known to be absent): then its age is 0.

    `last_current` is when that was last so, or when watching began. `problem` is empty when all is well.
    """

    resource: str
    last_current: float
    current: bool = False
    synced: bool = False
    absent: bool = False
    problem: str = ""
    lists: int = 0
    failures: int = 0

    def age(self, now: float) -> float:
        """For how many seconds changes may have been missed."""
        return 0.0 if self.current else max(0.0, now - self.last_current)

    def hold(self, now: float) -> None:
        """The copy is known to be current."""
        self.current, self.last_current, self.problem = True, now, ""

    def lose(self, now: float) -> None:
        """From now on changes may be missed."""
        if self.current:
            self.current, self.last_current = False, now

    def describe(self, now: float) -> dict[str, Any]:
        state = "absent" if self.absent else "current" if self.current else "stale"
        return {
            "resource": self.resource,
            "state": state if self.synced else "not synced",
            "ageSeconds": round(self.age(now), 1),
            "lists": self.lists,
            "failures": self.failures,
            "problem": self.problem,
        }
