"""When to act on a stream of changes: after a quiet time, but never later than a longest time. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Debounce:
    """Times are seconds of one steady clock."""

    quiet: float
    longest: float
    first: float | None = None
    last: float = 0.0

    def note(self, now: float) -> None:
        """A change was seen."""
        if self.first is None:
            self.first = now
        self.last = now

    def due(self) -> float | None:
        """When to act; None while nothing waits."""
        if self.first is None:
            return None
        return min(self.last + self.quiet, self.first + self.longest)

    def take(self) -> float:
        """Acts: returns when the first of the waiting changes was seen."""
        first, self.first = self.first, None
        return self.last if first is None else first
