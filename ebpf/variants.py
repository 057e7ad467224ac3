"""The ways in which a pod's outbound connections come to the agent, and the choice among them at start-up.

    B   the connect hook (cgroup) sets a mark, a policy rule loops marked packets
    C   no hook: policy rules loop all TCP that is sent from the pod, but for exceptions (`looping`)

What comes in is steered by the same program in both. C does without cgroup2 and the connect hook, and is less
exact: docs/capture.md lists what it cannot do.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ebpf import evidence, probe, selftest
from ebpf.bytecode import Collection
from ebpf.errors import CaptureError, CaptureReason

log = logging.getLogger(__name__)


class Variant(enum.StrEnum):
    """How outbound connections are captured."""

    B = "B"
    C = "C"


class Choice(enum.StrEnum):
    """Which variants may be taken."""

    AUTO = "auto"
    B = "B"
    C = "C"


class Why(enum.StrEnum):
    """Why a variant was taken: the first choice worked; it was asked for; the first choice did not work."""

    PREFERRED = "preferred"
    FORCED = "forced"
    FALLBACK = "fallback"


ORDER: Final = {
    Choice.AUTO: (Variant.B, Variant.C),
    Choice.B: (Variant.B,),
    Choice.C: (Variant.C,),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """The variant, and why that one: as a word and as a sentence."""

    variant: Variant
    why: Why
    reason: str


def choose(choice: Choice, collection: Collection, cgroup: Path | None, pin_dir: Path) -> Chosen:
    """The first variant whose parts are there and whose self-test passes. CaptureError if there is none.

    Without a cgroup there is no B. Some 0.3 s for each variant; none where `evidence` of the self-test is kept.
    """
    failures: list[tuple[Variant, CaptureError]] = []
    for variant in ORDER[choice]:
        try:
            works = _tried(variant, collection, cgroup, pin_dir)
        except CaptureError as error:
            if cgroup is not None and error.reason is CaptureReason.CGROUP2_MISSING:
                raise  # a mistake in a setting is no reason to capture otherwise
            log.warning("capture variant %s does not work: %s", variant, error)
            failures.append((variant, error))
            continue
        return Chosen(variant, _why(choice, failures), "; ".join((*_told(failures), f"{variant}: {works}")))
    raise _refusal(failures)


def _tried(variant: Variant, collection: Collection, cgroup: Path | None, pin_dir: Path) -> str:
    hook = variant is Variant.B
    if hook and cgroup is None:
        raise CaptureError(
            CaptureReason.CGROUP2_MISSING,
            "no cgroup2 hierarchy is mounted",
            "mount one with `mount -t cgroup2 none DIR` and set AMBIENT_CGROUP to it",
        )
    place = cgroup if hook else None
    probe.require(place, pin_dir)
    proof = evidence.of(collection, place)
    if evidence.is_kept(pin_dir, proof):
        return "the self-test of this code has passed since this kernel started"
    result = selftest.run(collection, place, pin_dir)
    if not result.works:
        raise CaptureError(
            CaptureReason.SELF_TEST_FAILED, result.reason, "nothing was changed; report this with `uname -a`"
        )
    evidence.keep(pin_dir, proof)
    return result.reason


def _why(choice: Choice, failures: list[tuple[Variant, CaptureError]]) -> Why:
    if choice is not Choice.AUTO:
        return Why.FORCED
    return Why.FALLBACK if failures else Why.PREFERRED


def _told(failures: list[tuple[Variant, CaptureError]]) -> Iterator[str]:
    for variant, error in failures:
        yield f"{variant} does not work: {error.reason}: {error.detail}"


def _refusal(failures: list[tuple[Variant, CaptureError]]) -> CaptureError:
    """What both lack, or the only failure, as it is; else the last one's reason with all details."""
    _, last = failures[-1]
    common = (
        len({str(error) for _, error in failures}) == 1 and last.reason is not CaptureReason.SELF_TEST_FAILED
    )
    if len(failures) == 1 or common:
        return last
    return CaptureError(last.reason, "; ".join(_told(failures)), failures[0][1].advice)
