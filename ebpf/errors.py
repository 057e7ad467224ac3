"""Errors of the capture layer: one line that says what is wrong and what to do about it."""

from __future__ import annotations

import enum


class CaptureReason(enum.StrEnum):
    """Closed list of what can keep a node or a pod from being captured."""

    BPF_FORBIDDEN = "bpf_forbidden"
    BPFFS_MISSING = "bpffs_missing"
    CGROUP2_MISSING = "cgroup2_missing"
    KERNEL_TOO_OLD = "kernel_too_old"
    MACHINE_UNSUPPORTED = "machine_unsupported"
    BYTE_CODE_MISSING = "byte_code_missing"
    COMPILE_FAILED = "compile_failed"
    VERIFIER_REJECTED = "verifier_rejected"
    LAYOUT_MISMATCH = "layout_mismatch"
    SELF_TEST_FAILED = "self_test_failed"
    NO_FREE_SLOT = "no_free_slot"
    NO_ADDRESS = "no_address"
    NETNS_UNUSABLE = "netns_unusable"
    ROUTES_FAILED = "routes_failed"
    SYSCTL_FAILED = "sysctl_failed"
    LISTEN_FAILED = "listen_failed"
    ATTACH_FAILED = "attach_failed"
    KERNEL_REFUSED = "kernel_refused"
    UNSUPPORTED = "unsupported"
    AGENT_AT_WORK = "agent_at_work"


class CaptureError(Exception):
    """Capture cannot be done; `str()` is one line: detail, then advice."""

    def __init__(self, reason: CaptureReason, detail: str, advice: str = "") -> None:
        super().__init__(reason, detail, advice)
        self.reason = reason
        self.detail = detail
        self.advice = advice

    def __str__(self) -> str:
        text = f"{self.reason}: {self.detail}"
        return f"{text}; {self.advice}" if self.advice else text
