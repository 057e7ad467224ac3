"""What the maps say about pods: read, claimed, written, erased.

`slots` is the journal: a pod's record is written before anything is changed for it and deleted after
everything is restored. So whoever opens the maps next can finish what a killed agent began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from ebpf import bpf, maps
from ebpf.bpf import UpdateFlag
from ebpf.dns import DnsSockets
from ebpf.errors import CaptureError, CaptureReason
from ebpf.listeners import PORTS, Listeners
from ebpf.loader import Kernel
from ebpf.maps import AddressKey, Kind, PodFlag, PodRecord, PortKey, SavedSysctls

_DNS_KINDS = (Kind.DNS_UDP, Kind.DNS_TCP)


class Ledger:
    """Records by cookie, kept in step with the kernel. OSError as the kernel answers."""

    def __init__(self, kernel: Kernel) -> None:
        """Take over what a former agent left; drop what belongs to no pod."""
        self._kernel = kernel
        self._keys: dict[str, dict[int, set[bytes]]] = {
            name: defaultdict(set) for name in ("addresses", "exempt")
        }
        self.records: dict[int, PodRecord] = {}
        self._read_records()
        self._read_keys()
        slots = {record.slot for record in self.records.values()}
        for slot in self._kernel.attached_slots():
            if slot not in slots:
                self._kernel.detach_pod(slot)

    def claim(self, cookie: int, netns: int, flags: PodFlag, sysctls: SavedSysctls) -> tuple[PodRecord, bool]:
        """The pod's record, written; and whether it is new. CaptureError if there is no room.

        Flags that capture less are not in it before `settle`: what they rest on is not written yet.
        """
        known = self.records.get(cookie)
        fd = self._kernel.maps["slots"]
        if known:
            record = replace(known, flags=known.flags & flags, saved=known.saved.or_else(sysctls))
            bpf.map_update(fd, maps.u32(record.slot), record.encode())
            self.records[cookie] = record
            return record, False
        used = {record.slot for record in self.records.values()}
        while (slot := maps.free_slot(used)) is not None:
            record = PodRecord(cookie, netns, slot, maps.NO_FLAGS, sysctls)
            try:
                bpf.map_update(fd, maps.u32(slot), record.encode(), UpdateFlag.NOEXIST)
            except FileExistsError:  # another agent's, during an upgrade
                used.add(slot)
                continue
            self.records[cookie] = record
            return record, True
        raise CaptureError(
            CaptureReason.NO_FREE_SLOT, f"{maps.MAX_PODS} pods are captured", "spread pods over more nodes"
        )

    def set_listeners(self, slot: int, listeners: Listeners) -> None:
        """Hand over new connections to these from now on."""
        for kind in PORTS:
            value = maps.u64(listeners.of(kind).fileno())
            bpf.map_update(self._kernel.maps["listeners"], maps.listener_key(slot, kind), value)

    def set_dns(self, slot: int, dns: DnsSockets | None) -> None:
        """Hand over questions to name servers to these from now on; None: to nobody."""
        for kind in _DNS_KINDS:
            key = maps.listener_key(slot, kind)
            if dns is None:
                bpf.map_delete(self._kernel.maps["listeners"], key)
            else:
                bpf.map_update(self._kernel.maps["listeners"], key, maps.u64(dns.of(kind).fileno()))

    def hands_over_to(self, record: PodRecord, listeners: Listeners) -> bool:
        """Whether the kernel still gives the pod's connections to these; False if another agent has come."""
        if self._now(record) is None:
            return False
        fd = self._kernel.maps["listeners"]
        wanted = {kind: maps.u64(cookie) for kind, cookie in listeners.cookies().items()}
        return all(
            bpf.map_lookup(fd, maps.listener_key(record.slot, kind), 8) == raw for kind, raw in wanted.items()
        )

    def serves(self, record: PodRecord, listeners: Listeners) -> bool:
        """`hands_over_to`, asked of the listener for outbound connections alone: cheap enough for every second."""
        key = maps.listener_key(record.slot, Kind.OUTBOUND)
        there = bpf.map_lookup(self._kernel.maps["listeners"], key, 8)
        return there == maps.u64(listeners.cookie(Kind.OUTBOUND))

    def is_current(self, record: PodRecord) -> bool:
        """Whether the pod still has its slot, and is not leaving: another agent may have withdrawn it."""
        now = self._now(record)
        return now is not None and PodFlag.LEAVING not in now.flags

    def set_entries(self, name: str, slot: int, wanted: Mapping[bytes, bytes]) -> None:
        """Make a pod's part of `addresses` or `exempt` just this."""
        fd = self._kernel.maps[name]
        for key, value in wanted.items():
            bpf.map_update(fd, key, value)
        for key in self._keys[name][slot] - wanted.keys():
            bpf.map_delete(fd, key)
        self._keys[name][slot] = set(wanted)

    def settle(self, record: PodRecord, flags: PodFlag) -> PodRecord:
        """The record with these flags, written; listeners and entries have to be there."""
        settled = replace(record, flags=flags)
        bpf.map_update(self._kernel.maps["slots"], maps.u32(record.slot), settled.encode())
        self.records[record.cookie] = settled
        return settled

    def mark_connections(self, record: PodRecord) -> None:
        """From now on connect() in the pod is captured."""
        bpf.map_update(self._kernel.maps["pods"], maps.u64(record.cookie), record.encode())

    def spare_connections(self, record: PodRecord) -> None:
        """From now on connect() in the pod is left alone."""
        bpf.map_delete(self._kernel.maps["pods"], maps.u64(record.cookie))

    def leave(self, record: PodRecord) -> PodRecord:
        """From now on nothing new is captured; the record says so. What marks before what steers."""
        leaving = replace(record, flags=record.flags | PodFlag.LEAVING)
        bpf.map_update(self._kernel.maps["pods"], maps.u64(record.cookie), leaving.encode())
        bpf.map_update(self._kernel.maps["slots"], maps.u32(record.slot), leaving.encode())
        self.records[record.cookie] = leaving
        return leaving

    def is_leaving(self, record: PodRecord) -> bool:
        """As the kernel has it: another agent may have enrolled the pod again, or finished it."""
        now = self._now(record)
        return now is not None and PodFlag.LEAVING in now.flags

    def erase(self, record: PodRecord) -> None:
        """Everything about a pod, its record last."""
        for kind in Kind:
            bpf.map_delete(self._kernel.maps["listeners"], maps.listener_key(record.slot, kind))
        for name, keys in self._keys.items():
            self.set_entries(name, record.slot, {})
            del keys[record.slot]
        bpf.map_delete(self._kernel.maps["slots"], maps.u32(record.slot))
        self.records.pop(record.cookie, None)

    def _now(self, record: PodRecord) -> PodRecord | None:
        """The pod's record as the kernel has it; None if it has none, or its slot is another pod's."""
        raw = bpf.map_lookup(self._kernel.maps["slots"], maps.u32(record.slot), maps.RECORD_SIZE)
        now = PodRecord.decode(raw) if raw else None
        return now if now is not None and now.cookie == record.cookie else None

    def _read_records(self) -> None:
        fd = self._kernel.maps["slots"]
        for key in list(bpf.map_keys(fd, 4)):
            raw = bpf.map_lookup(fd, key, maps.RECORD_SIZE)
            if raw:
                record = PodRecord.decode(raw)
                self.records[record.cookie] = record

    def _read_keys(self) -> None:
        slots = {record.slot for record in self.records.values()}
        for name, key_size, decode in (("addresses", 20, AddressKey.decode), ("exempt", 8, PortKey.decode)):
            fd = self._kernel.maps[name]
            for key in list(bpf.map_keys(fd, key_size)):
                slot = decode(key).slot
                if slot in slots:
                    self._keys[name][slot].add(key)
                else:
                    bpf.map_delete(fd, key)
