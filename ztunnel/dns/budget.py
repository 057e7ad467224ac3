"""How many questions may wait for name servers at once: in all, and of each source. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

__all__ = ["Budget"]


class Budget:
    """Places; every `take` that says True is followed by one `give`."""

    def __init__(self, *, total: int, each: int) -> None:
        self._total, self._each = total, each
        self._held: Counter[Hashable] = Counter()
        self.used = 0

    def take(self, source: Hashable) -> bool:
        """Whether there is a place."""
        if self.used >= self._total or self._held[source] >= self._each:
            return False
        self.used += 1
        self._held[source] += 1
        return True

    def give(self, source: Hashable) -> None:
        """Give a place back."""
        self.used -= 1
        self._held[source] -= 1
        if not self._held[source]:
            del self._held[source]
