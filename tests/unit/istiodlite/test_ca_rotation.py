"""Replacing the root: steps in time, steps that are broken off, and handshakes at every moment of it."""

from __future__ import annotations

import datetime
import itertools
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hbone.spiffe import SpiffeId
from istiodlite.ca import roots as roots_module
from istiodlite.ca.authority import OLD_ROOTS, Authority
from istiodlite.ca.issue import chain, issue
from istiodlite.ca.roots import RotatingAuthority, advance, advance_if_due, state_of
from istiodlite.ca.rotation import Roots, Span, Step, Times, due_at, next_step
from istiodlite.ca.serving import ServingCertificate

HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
TD = "cluster.local"
OLD = Span(NOW, NOW + 100 * DAY)


def test_a_root_is_replaced_at_a_fifth_of_its_life() -> None:
    assert (next_step(Roots(OLD)), due_at(Roots(OLD))) == (Step.INTRODUCE, NOW + 80 * DAY)


def test_the_new_root_signs_when_every_certificate_was_fetched_again() -> None:
    roots = Roots(OLD, Span(NOW + 80 * DAY, NOW + 180 * DAY))
    assert (next_step(roots), due_at(roots)) == (Step.ACTIVATE, NOW + 81 * DAY + HOUR)


def test_a_root_that_ends_soon_is_not_waited_for() -> None:
    roots = Roots(OLD, Span(NOW + 99 * DAY, NOW + 180 * DAY))
    assert due_at(roots) < NOW + 99 * DAY


def test_the_old_root_is_trusted_for_as_long_as_anything_it_signed_may_be_valid() -> None:
    roots = Roots(Span(NOW, NOW + 100 * DAY), old=True)
    times = Times()
    assert next_step(roots) is Step.RETIRE
    assert due_at(roots) == NOW + times.distribute + times.retire
    assert times.retire > 90 * DAY


def certificates(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def test_the_steps_on_disk(tmp_path: Path) -> None:
    first = Authority.load_or_create(tmp_path, TD, NOW)
    assert advance_if_due(tmp_path, TD, NOW + DAY) is None
    assert advance(tmp_path, TD, NOW) is Step.INTRODUCE
    second = Authority.load_or_create(tmp_path, TD, NOW)
    assert second.certificate == first.certificate
    assert len(certificates(second.roots_pem)) == 2
    assert advance(tmp_path, TD, NOW) is Step.ACTIVATE
    third = Authority.load_or_create(tmp_path, TD, NOW)
    assert third.certificate != first.certificate
    assert third.key.public_key() != first.key.public_key()
    assert set(certificates(third.roots_pem)) == set(certificates(second.roots_pem))
    assert advance(tmp_path, TD, NOW) is Step.RETIRE
    last = Authority.load_or_create(tmp_path, TD, NOW)
    assert certificates(last.roots_pem) == [third.certificate]
    assert last.intermediates_pem == ()
    assert state_of(tmp_path) == replace(state_of(tmp_path), next=None, old=False)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "ca-key.pem", "root-cert.pem"}


def test_all_steps_come_by_themselves_and_leave_room_between_them(tmp_path: Path) -> None:
    Authority.load_or_create(tmp_path, TD, NOW)
    taken = []
    for hours in range(0, 24 * 3650, 12):
        now = NOW + hours * HOUR
        if (step := advance_if_due(tmp_path, TD, now)) is not None:
            taken.append((step, now))
    assert [step for step, _ in taken] == [Step.INTRODUCE, Step.ACTIVATE, Step.RETIRE]
    assert taken[0][1] - NOW >= 0.79 * 3650 * DAY
    assert taken[1][1] - taken[0][1] >= DAY
    assert taken[2][1] - taken[1][1] >= 90 * DAY


def test_a_running_server_follows_the_command(tmp_path: Path) -> None:
    authority = RotatingAuthority(tmp_path, TD)
    serving = ServingCertificate(authority, lambda: ["localhost"])
    before = serving.current(NOW)
    for expected in ("introduce", "activate"):
        command = [sys.executable, "-m", "istiodlite", "rotate-root", "--data", str(tmp_path)]
        if expected == "activate":
            command.append("--now")
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True
        )
        assert done.stdout.startswith(f"done: {expected}\n"), done.stdout
        assert authority.refresh(NOW) is None
    assert serving.current(NOW) is not before, "its issuer changed"
    assert len(certificates(authority.snapshot().roots_pem)) == 2


@pytest.mark.parametrize("writes", range(1, 5))
def test_a_step_that_is_broken_off_anywhere_can_be_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    first = Authority.load_or_create(tmp_path, TD, NOW)
    advance(tmp_path, TD, NOW)
    upcoming = Authority.load_or_create(tmp_path, TD, NOW).roots_pem
    write, left = roots_module.write_file, itertools.count(writes - 1, -1)

    def fails(path: Path, data: bytes, mode: int) -> None:
        if next(left) <= 0:
            raise OSError("power cut")
        write(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(roots_module, "write_file", fails)
        with pytest.raises(OSError, match="power cut"):
            advance(tmp_path, TD, NOW)
    between = Authority.load_or_create(tmp_path, TD, NOW)
    assert set(certificates(between.roots_pem)) == set(certificates(upcoming)), "nothing trusted was lost"
    if between.certificate == first.certificate:
        assert between.intermediates_pem == ()
        assert advance(tmp_path, TD, NOW) is Step.ACTIVATE
    after = Authority.load_or_create(tmp_path, TD, NOW)
    assert after.certificate != first.certificate
    assert state_of(tmp_path).old
    assert len(certificates((tmp_path / OLD_ROOTS).read_bytes())) == 1


@dataclass(frozen=True)
class Peer:
    """A workload with the certificate and the roots that it was given at some time."""

    leaf: x509.Certificate
    chain_pem: bytes
    key_pem: bytes
    roots_pem: bytes


def fetch(authority: Authority, name: str, now: datetime.datetime = NOW) -> Peer:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = issue(authority, SpiffeId(TD, "shop", name), key.public_key(), DAY, now)
    *own, roots = chain(authority, leaf)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Peer(leaf, "".join(own).encode(), pem, roots.encode())


def context(peer: Peer, folder: Path, *, server: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=peer.roots_pem.decode())
    both = folder / "pair.pem"
    both.write_bytes(peer.chain_pem + peer.key_pem)
    made.load_cert_chain(both)
    return made


def handshake(client: Peer, server: Peer, folder: Path) -> None:
    """Mutual TLS in memory; raises ssl.SSLError if either refuses the other."""
    wires = [ssl.MemoryBIO() for _ in range(4)]
    ends = [
        context(client, folder, server=False).wrap_bio(wires[0], wires[1], server_hostname="x"),
        context(server, folder, server=True).wrap_bio(wires[2], wires[3], server_side=True),
    ]
    waiting = set(range(2))
    for _ in range(10):
        for number, end in enumerate(ends):
            try:
                end.do_handshake() if number in waiting else end.read(1)
                waiting.discard(number)
            except ssl.SSLWantReadError:
                pass
            data = wires[2 * number + 1].read()
            if data:
                wires[2 * (1 - number)].write(data)
    assert not waiting, "the handshake did not end"


def test_through_the_overlap_everybody_can_speak_with_everybody(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Authority.load_or_create(data, TD, NOW)
    peers: list[Peer] = []
    for phase, count in (("before", 1), ("introduced", 2), ("activated", 3)):
        if phase != "before":
            advance(data, TD, NOW)
        peers.append(fetch(Authority.load_or_create(data, TD, NOW), phase))
        assert len(peers) == count
        for client, server in itertools.product(peers, repeat=2):
            handshake(client, server, tmp_path)
    advance(data, TD, NOW)
    peers.append(fetch(Authority.load_or_create(data, TD, NOW), "retired"))
    for client, server in itertools.product(peers[2:], repeat=2):
        handshake(client, server, tmp_path)
    with pytest.raises(ssl.SSLError):
        handshake(peers[0], peers[3], tmp_path)


def test_without_the_overlap_the_same_peers_do_refuse_each_other(tmp_path: Path) -> None:
    """What the overlap is for: the check above can fail."""
    one = fetch(Authority.load_or_create(tmp_path / "one", TD, NOW), "one")
    other = fetch(Authority.load_or_create(tmp_path / "other", TD, NOW), "other")
    with pytest.raises(ssl.SSLError):
        handshake(one, other, tmp_path)


def _verifies(leaf: Peer, trusts: bytes, now: datetime.datetime) -> bool:
    """Path validation as of a time to come."""
    pool = certificates(leaf.chain_pem + trusts)
    anchors = set(certificates(trusts))
    current = leaf.leaf
    for _ in range(4):
        if not current.not_valid_before_utc <= now < current.not_valid_after_utc:
            return False
        if current in anchors:
            return True
        issuers = [one for one in pool if one.subject == current.issuer and _signed(current, one)]
        # A root that is trusted comes before a cross certificate of the same name.
        issuers.sort(key=lambda one: one not in anchors)
        if not issuers:
            return False
        current = issuers[0]
    return False


def _signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except Exception:  # any reason is a no
        return False
    return True


def test_years_of_rotation_with_agents_that_renew_at_half_life(tmp_path: Path) -> None:
    """Three agents that fetch at different hours meet at every step of a rotation, in virtual time."""
    start = NOW
    authority = Authority.load_or_create(tmp_path, TD, start)
    end = authority.certificate.not_valid_after_utc
    begin = end - (end - authority.certificate.not_valid_before_utc) * 0.2
    now, steps = begin - 2 * DAY, 0
    agents = {offset: fetch(authority, f"a{offset}", now - offset * HOUR) for offset in (0, 5, 11)}
    fetched = {offset: now - offset * HOUR for offset in agents}
    stop: Callable[[], bool] = lambda: steps == 3 and now > retired + 2 * DAY  # noqa: E731
    retired = end
    while not stop():
        if (step := advance_if_due(tmp_path, TD, now)) is not None:
            steps += 1
            retired = now
            assert step is list(Step)[steps - 1]
        authority = Authority.load_or_create(tmp_path, TD, now)
        for offset in agents:
            if now - fetched[offset] >= 12 * HOUR:
                agents[offset], fetched[offset] = fetch(authority, f"a{offset}", now), now
        for one, other in itertools.permutations(agents.values(), 2):
            assert _verifies(one, other.roots_pem, now), f"{step} at {now}"
        calm = steps == 2 and retired + 3 * DAY < now < due_at(state_of(tmp_path)) - 2 * DAY
        now += 20 * DAY if calm else 3 * HOUR
        if calm:
            agents = {offset: fetch(authority, f"a{offset}", now) for offset in agents}
            fetched = dict.fromkeys(agents, now)
