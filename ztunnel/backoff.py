"""How long to wait before the next try. Pure: the random draw is an argument."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(slots=True)
class Backoff:
    """Delays that double from `first` to `cap` seconds, each shortened by up to `jitter` of itself.

    Shortening (never lengthening) keeps `cap` a promise.
    """

    first: float
    cap: float
    jitter: float = 0.2
    failures: int = 0

    def next(self, draw: float) -> float:
        """Count one more failure and return its delay; `draw` is uniform in [0, 1)."""
        # The exponent is bounded, so that a day of failures does not overflow a float.
        delay = min(self.cap, self.first * 2.0 ** min(self.failures, 40))
        self.failures += 1
        return delay * (1 - self.jitter * draw)

    def reset(self) -> None:
        """A success: the next delay is `first` again."""
        self.failures = 0
