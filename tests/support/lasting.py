"""How long attacks last that are about endurance."""

from __future__ import annotations

import os


def seconds(usual: float) -> float:
    """`AMBIENT_ATTACK_SECONDS`, or what is enough for every day."""
    return float(os.environ.get("AMBIENT_ATTACK_SECONDS", usual))
