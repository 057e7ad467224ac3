"""A cluster's root is replaced, and a plugged-in CA exchanged, while the server runs."""

from __future__ import annotations

import datetime
import itertools
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from istiodlite.ca import secretroots
from istiodlite.ca.following import FolderFollower, FollowedAuthority, SecretFollower, change_by_hand
from istiodlite.ca.rotation import Step
from istiodlite.ca.secrets import SECRET, authority_of, encoded, load_or_create_secret
from istiodlite.kube import KubeClient
from tests.support import pki
from tests.unit.istiodlite.kube.apiserver import PATHS, ApiServer, Fault, status
from tests.unit.istiodlite.kube.test_secrets import files
from tests.unit.istiodlite.test_ca_rotation import Peer, fetch, handshake

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
HOME, TD = "istio-system", "cluster.local"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer(tmp_path)
    async with api.serve():
        yield api


def kept(server: ApiServer) -> set[str]:
    found: dict[str, Any] = server.objects[PATHS["Secret"]][(HOME, SECRET)]["data"]
    return {name for name, text in found.items() if text}


def roots(authority: FollowedAuthority) -> set[x509.Certificate]:
    return set(x509.load_pem_x509_certificates(authority.snapshot().roots_pem))


def everybody(peers: list[Peer], folder: Path) -> None:
    for client, other in itertools.product(peers, repeat=2):
        handshake(client, other, folder)


@pytest.mark.trio
@pytest.mark.parametrize("istiods", [False, True], ids=["ours", "an RSA root of istiod"])
async def test_the_root_is_replaced_without_a_failed_handshake(
    server: ApiServer, tmp_path: Path, istiods: bool
) -> None:
    if istiods:
        data = encoded(files(pki.Authority.root(key="rsa-2048")))
        server.put({"kind": "Secret", "metadata": {"name": SECRET, "namespace": HOME}, "data": data})
    async with KubeClient(server.access) as client:
        authority = FollowedAuthority(await load_or_create_secret(client, HOME, TD, NOW))
        follower = SecretFollower(authority, client, HOME, TD)
        peers = [fetch(authority.snapshot(), "before", NOW)]
        assert await follower.look(NOW + DAY) is None, "nobody asked for a change"

        done, following, due = await change_by_hand(client, HOME, TD, NOW, act=True, at_once=False)
        assert (done, following) == (Step.INTRODUCE, Step.ACTIVATE)
        assert await follower.look(NOW) is None
        assert len(roots(authority)) == 2
        peers.append(fetch(authority.snapshot(), "introduced", NOW))
        everybody(peers, tmp_path)

        # A second replica is as fast; one of the two writes.
        other = SecretFollower(FollowedAuthority(authority.snapshot()), client, HOME, TD)
        assert await follower.look(due) is Step.ACTIVATE
        assert await other.look(due) is None
        assert await follower.look(due) is None
        peers.append(fetch(authority.snapshot(), "activated", NOW))
        assert peers[-1].leaf.issuer != peers[0].leaf.issuer
        everybody(peers, tmp_path)

        _, following, due = await change_by_hand(client, HOME, TD, NOW, act=True, at_once=False)
        assert following is Step.RETIRE
        assert await follower.look(due - DAY) is None
        assert await follower.look(due) is Step.RETIRE
        await follower.look(due)
        assert len(roots(authority)) == 1
        peers.append(fetch(authority.snapshot(), "retired", NOW))
        everybody(peers[2:], tmp_path)
        with pytest.raises(ssl.SSLError):
            handshake(peers[0], peers[3], tmp_path)
        assert kept(server) <= {"ca-cert.pem", "ca-key.pem", "root-cert.pem"}


@pytest.mark.trio
async def test_who_starts_in_the_middle_of_a_change_goes_on_with_it(server: ApiServer) -> None:
    async with KubeClient(server.access) as client:
        await load_or_create_secret(client, HOME, TD, NOW)
        for _ in range(2):
            await change_by_hand(client, HOME, TD, NOW, act=True, at_once=True)
        # As old as it is after most of its life: it must not be issued again over the change.
        late = NOW + 3000 * DAY
        authority = FollowedAuthority(await load_or_create_secret(client, HOME, TD, late))
        assert len(roots(authority)) == 2
        assert await SecretFollower(authority, client, HOME, TD).look(late) is Step.RETIRE


@pytest.mark.trio
async def test_a_secret_that_breaks_is_said_once_and_the_issuer_stays(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with KubeClient(server.access) as client:
        first = await load_or_create_secret(client, HOME, TD, NOW)
        authority = FollowedAuthority(first)
        follower = SecretFollower(authority, client, HOME, TD)
        await follower.look(NOW)
        broken = {
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": HOME},
            "data": {"ca-key.pem": "eA=="},
        }
        server.put(broken)
        for _ in range(3):
            await follower.look(NOW)
        server.faults.append(Fault("list", times=1, answer=status(503, "", "busy")))
        await follower.look(NOW)
        assert authority.snapshot().certificate == first.certificate
        told = [one.message for one in caplog.records if one.levelno == logging.ERROR]
        assert len(told) == 2
        assert "ca-cert.pem missing" in told[0]
        assert "busy" in told[1]


def test_a_plugged_in_issuer_is_not_ours_to_replace() -> None:
    root = pki.Authority.root()
    mine = files(root.intermediate(), roots=root.pem)
    with pytest.raises(Exception, match="is not a root"):
        secretroots.take(Step.INTRODUCE, mine, TD, "x", NOW)


def write(folder: Path, found: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in found.items():
        (folder / name).write_bytes(data)


def test_an_exchanged_plugged_in_ca_signs_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pki.Authority.root(), pki.Authority.root()
    folder = tmp_path / "cacerts"
    write(folder, files(one))
    authority = FollowedAuthority(authority_of(files(one), TD, "x", NOW))
    follower = FolderFollower(authority, folder, TD)
    follower.look()
    peers = [fetch(authority.snapshot(), "one", NOW)]
    # As Istio's guide has it: first both roots, then the new issuer, then its root alone.
    write(folder, files(one, roots=one.pem + two.pem))
    follower.look()
    peers.append(fetch(authority.snapshot(), "both", NOW))
    write(folder, files(two, roots=one.pem + two.pem))
    follower.look()
    peers.append(fetch(authority.snapshot(), "two", NOW))
    everybody(peers[1:], tmp_path)
    (folder / "ca-key.pem").write_bytes(pki.key_to_pem(one.key))
    follower.look()
    follower.look()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert "does not belong" in caplog.text
    assert fetch(authority.snapshot(), "still", NOW).leaf.issuer == peers[2].leaf.issuer
