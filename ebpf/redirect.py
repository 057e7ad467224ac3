"""The short cut past the host: packets of direct connections go from the host's end of one pod's veth straight into the
other pod (`bpf_redirect_peer`). Off unless `enable` is called. Who may talk to whom it does not touch.

Programs and map are pinned and outlive the agent; a successor puts its own program in place of what is there.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from ebpf import bpf, maps, netns, redirecttest, veth
from ebpf.errors import CaptureError
from ebpf.loader import Kernel
from ebpf.maps import Address, PodRecord, ip16
from ebpf.veth import HostEnd, NoHostEndError

_LEAD: Final = 50_000_000
"""Nanoseconds within which a pod's entries are written: connections that begin sooner take the host's way."""


class State(enum.StrEnum):
    """Whether there is a short cut."""

    OFF = "off"
    ON = "on"
    REFUSED = "refused"


class Place(NamedTuple):
    """A pod as it was looked at: the addresses it had, and where its veth ends or why it has none here."""

    addresses: frozenset[Address]
    end: HostEnd | None
    problem: str


class Redirect:
    """The short cut on one node; `Direct.redirect` holds it. Any thread may call, in the node's network namespace.
    OSError as the kernel answers."""

    def __init__(self, kernel: Kernel, is_admitted: Callable[[int], bool]) -> None:
        """`is_admitted`: whether a slot's pod is captured by this process."""
        self._kernel, self._is_admitted = kernel, is_admitted
        self._lock = threading.Lock()
        self._places: dict[int, Place] = {}
        self.state, self.problem = State.OFF, ""

    def enable(self) -> None:
        """Test in private namespaces that packets arrive by the short cut, and only those that may take it. What a
        former agent left stays in use. CaptureError; then there is no short cut, and `problem` says why."""
        try:
            redirecttest.run(self._kernel.collection, self._kernel.directory)
        except (CaptureError, OSError) as error:
            self.disable()
            self.state, self.problem = State.REFUSED, str(error)
            raise
        self.state, self.problem = State.ON, ""

    def disable(self) -> None:
        """All packets go by the host from now on, also if a former agent had it otherwise."""
        with self._lock:
            self.state, self.problem = State.OFF, ""
            self._places.clear()
            self._drop(self._there())

    def is_known(self, slot: int, addresses: Iterable[Address]) -> bool:
        """Whether `add` has looked at the pod as it is."""
        place = self._places.get(slot)
        return place is not None and place.addresses == frozenset(addresses)

    def add(self, slot: int, netns_fd: int, addresses: Iterable[Address]) -> None:
        """Give a pod the short cut; one without a veth that ends here is left out."""
        wanted, end, problem = frozenset(addresses), None, ""
        try:
            cookie = netns.cookie(netns_fd)
            end = veth.host_end(netns_fd, wanted)
        except NoHostEndError as error:
            problem = str(error)
        with self._lock:
            if self.state is not State.ON or not self._is_admitted(slot) or not wanted:
                return
            if not self._is_pod(slot, cookie):
                return  # it has left, and the slot means another
            if end is None:
                self._drop({slot})
            else:
                self._write(slot, wanted, end)
            self._places[slot] = Place(wanted, end, problem)

    def _is_pod(self, slot: int, cookie: int) -> bool:
        raw = bpf.map_lookup(self._kernel.maps["slots"], maps.u32(slot), maps.RECORD_SIZE)
        return raw is not None and PodRecord.decode(raw).cookie == cookie

    def _write(self, slot: int, addresses: frozenset[Address], end: HostEnd) -> None:
        """Entries that are as they should be are not touched: connections go on as they began."""
        fd = self._kernel.maps["redirect_hosts"]
        former = self._places.get(slot)
        for address in former.addresses - addresses if former else ():
            bpf.map_delete(fd, ip16(address))
        self._kernel.attach_redirect(slot, end.ifindex)
        since = time.monotonic_ns() + _LEAD
        for key in map(ip16, addresses):
            raw = bpf.map_lookup(fd, key, veth.HOST_SIZE)
            if raw is None or veth.decode_host(raw)[:2] != (end, slot):
                bpf.map_update(fd, key, end.encode(slot, since))

    def remove(self, slot: int) -> None:
        """The pod leaves, and its slot may come to mean another."""
        with self._lock:
            if self.state is State.ON:
                self._drop({slot})

    def sweep(self) -> int:
        """Remove what belongs to no pod of this process, and look again for veths that are gone; how many."""
        with self._lock:
            if self.state is not State.ON:
                return 0
            links = self._kernel.redirects()
            gone = {slot for slot in self._there() if not self._is_admitted(slot)}
            for slot, place in self._places.items():
                if place.end is not None and links.get(slot) != place.end.ifindex:
                    gone.add(slot)
            self._drop(gone)
            return len(gone) + self._drop_strange()

    @property
    def left_out(self) -> dict[int, str]:
        """Slots of pods that do not have it, and why."""
        with self._lock:
            return {slot: place.problem for slot, place in self._places.items() if place.end is None}

    @property
    def slots(self) -> set[int]:
        """Slots of pods that have it."""
        with self._lock:
            return {slot for slot, place in self._places.items() if place.end is not None}

    def _drop(self, slots: Iterable[int]) -> None:
        """Nothing points to these pods any more, and nothing is attached to their veths."""
        fd, unknown = self._kernel.maps["redirect_hosts"], set[int]()
        for slot in slots:
            place = self._places.pop(slot, None)
            if place is None:
                unknown.add(slot)
            for address in place.addresses if place else ():
                bpf.map_delete(fd, ip16(address))
        for key, slot in self._entries().items() if unknown else ():
            if slot in unknown:
                bpf.map_delete(fd, key)
        for slot in slots:
            self._kernel.detach_redirect(slot)

    def _drop_strange(self) -> int:
        """Remove addresses that a former agent knew and this one's pods do not have; how many."""
        known = {slot: set(map(ip16, place.addresses)) for slot, place in self._places.items()}
        strange = [key for key, slot in self._entries().items() if key not in known.get(slot, {key})]
        for key in strange:
            bpf.map_delete(self._kernel.maps["redirect_hosts"], key)
        return len(strange)

    def _there(self) -> set[int]:
        return set(self._entries().values()) | self._kernel.redirects().keys()

    def _entries(self) -> dict[bytes, int]:
        """The slot of each address."""
        fd = self._kernel.maps["redirect_hosts"]
        return {key: veth.decode_host(raw)[1] for key, raw in bpf.map_entries(fd, 16, veth.HOST_SIZE)}
