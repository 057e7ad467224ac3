"""Acceleration of direct connections: messages go from socket to socket inside the kernel (turbo.h).

For pods that asked for it only, since sockets that are accelerated differ from plain ones (docs/direct-path.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from ebpf import bpf, btf, pairs, turbotest
from ebpf.errors import CaptureError, CaptureReason
from ebpf.loader import Kernel

__all__ = ["Turbo", "offsets"]


def offsets() -> dict[str, int]:
    """Where this kernel's sockets keep what `turbo` looks at, in bytes. CaptureError where it does not say."""
    try:
        types = btf.Types(btf.VMLINUX.read_bytes())
        return {
            "write_seq": types.offset("tcp_sock", "write_seq"),
            "copied_seq": types.offset("tcp_sock", "copied_seq"),
            "bytes_received": types.offset("tcp_sock", "bytes_received"),
            "rmem_alloc": types.offset("sock", "sk_backlog.rmem_alloc"),
            "rcvbuf": types.offset("sock", "sk_rcvbuf"),
        }
    except (OSError, ValueError, KeyError) as error:
        raise CaptureError(
            CaptureReason.UNSUPPORTED,
            f"acceleration: {error}",
            "needs a kernel with CONFIG_DEBUG_INFO_BTF; connections stay direct without it",
        ) from error


class Turbo:
    """Acceleration on one node; `Direct.turbo` holds it. OSError as the kernel answers."""

    def __init__(self, kernel: Kernel, cgroup: Path | None) -> None:
        self._kernel, self._cgroup = kernel, cgroup
        self.enabled = False
        self._lost: set[bytes] = set()

    def enable(self) -> None:
        """Test in a private namespace that order and back-pressure hold, then attach. Some 0.7 s. CaptureError."""
        if self._cgroup is None:
            raise CaptureError(CaptureReason.UNSUPPORTED, "no cgroup to attach to", "use Capture.open")
        found = offsets()
        turbotest.run(self._kernel.collection, found, self._cgroup, self._kernel.directory)
        self.attach(found)

    def attach(self, found: Mapping[str, int]) -> None:
        """`enable` without the test, with the offsets that are given."""
        assert self._cgroup is not None
        self.sweep()
        self._kernel.attach_turbo(self._cgroup, found)
        self.enabled = True

    def handed_over(self) -> dict[int, dict[pairs.Endpoint, int]]:
        """By connection (its cookie): which end has handed over how many bytes, of sides that are open."""
        fd = self._kernel.maps["turbo_ends"]
        found: dict[int, dict[pairs.Endpoint, int]] = defaultdict(dict)
        for key, raw in _entries(fd):
            cookie, sent = pairs.decode_handed_over(raw)
            found[cookie][pairs.Tuple4.decode(key).client] = sent
        return found

    def sweep(self) -> int:
        """Remove what is known of sockets that closed while nothing was attached; how many. Only what was there at
        the last sweep, too: a socket that is closing has left its map before its bytes are told."""
        keys = {
            name: set(bpf.map_keys(self._kernel.maps[name], pairs.TUPLE_SIZE))
            for name in ("turbo_ends", "turbo_sockets", "direct_conns")
        }
        open_ends = keys["turbo_sockets"] | keys["direct_conns"]
        lost = {key for key in keys["turbo_ends"] - open_ends if _other_end(key) not in keys["direct_conns"]}
        gone, self._lost = lost & self._lost, lost
        for key in gone:
            bpf.map_delete(self._kernel.maps["turbo_ends"], key)
        return len(gone)


def _other_end(key: bytes) -> bytes:
    return pairs.Tuple4.decode(key).reversed.encode()


def _entries(fd: int) -> Iterable[tuple[bytes, bytes]]:
    for key in list(bpf.map_keys(fd, pairs.TUPLE_SIZE)):
        if raw := bpf.map_lookup(fd, key, pairs.END_SIZE):
            yield key, raw
