"""What goes wrong between an API server and its clients, done by a server that obeys the test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from istiodlite.kube import client, reflector
from istiodlite.kube.access import Pem
from tests.support import pki
from tests.unit.istiodlite.kube.apiserver import PATHS, TOKEN, ApiServer, Fault, status, until
from tests.unit.istiodlite.kube.objects import key, namespace, pod, policy
from tests.unit.istiodlite.kube.plane import Plane, watching

pytestmark = pytest.mark.trio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are shorter than in earnest; their lengths are tested apart, without a clock."""
    monkeypatch.setattr(reflector, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(reflector, "MISSING_WAIT", 0.05)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer(tmp_path)
    for body in (namespace("shop"), pod("web"), pod("db", "10.1.0.6"), policy("deny")):
        api.put(body)
    async with api.serve():
        yield api


async def synced(plane: Plane) -> None:
    with trio.fail_after(60):
        await plane.source.synced.wait()


async def test_nothing_is_delivered_before_every_kind_is_listed(server: ApiServer) -> None:
    gate = trio.Event()
    server.faults.append(Fault("list", "AuthorizationPolicy", gate=gate))
    async with watching(server) as plane:
        await until(
            lambda: all(
                server.watched(kind)
                for kind in PATHS
                if kind not in ("AuthorizationPolicy", "ConfigMap", "Secret")
            )
        )
        server.put(pod("early", "10.1.0.7"))
        await until(lambda: key("Pod", "early") in plane.source._waiting)
        assert plane.batches == []
        gate.set()
        await synced(plane)
        assert plane.names("Pod") == {"web", "db", "early"}
        assert plane.names("AuthorizationPolicy") == {"deny"}
        assert len(plane.batches) == 1


async def test_changes_and_removals_are_delivered_as_they_come(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("Pod"))
        server.put(pod("web", "10.1.0.9"))
        server.delete("Pod", "shop", "db")
        await until(lambda: plane.names("Pod") == {"web"})
        assert plane.objects[key("Pod", "web")].addresses == ("10.1.0.9",)  # type: ignore[union-attr]
        assert server.count("list", "Pod") == 1


async def test_changes_of_what_nobody_needs_are_not_delivered(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("Pod"))
        count = len(plane.batches)
        annotations = {"ambient.istio.io/redirection": "enabled", "example.com/heartbeat": "17"}
        server.put(pod("web", annotations=annotations, managedFields=[{"manager": "other"}]))
        server.put(pod("last", "10.1.0.8"))
        await until(lambda: "last" in plane.names("Pod"))
        assert len(plane.batches) == count + 1
        stored = plane.objects[key("Pod", "web")].meta
        assert dict(stored.annotations) == {"ambient.istio.io/redirection": "enabled"}


async def test_a_bookmark_spares_the_list_after_the_history_was_forgotten(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("Pod"))
        for number in range(5):
            server.put(namespace(f"n{number}"))
        server.bookmark("Pod")
        server.compact()
        server.end_watches("Pod")
        await until(lambda: server.count("watch", "Pod") == 2 and server.watched("Pod"))
        server.put(pod("new", "10.1.0.8"))
        await until(lambda: "new" in plane.names("Pod"))
        assert server.count("list", "Pod") == 1


async def test_a_forgotten_version_brings_a_new_list_which_is_applied_as_a_whole(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("Pod"))
        server.faults.append(gate := Fault("watch", "Pod", gate=trio.Event()))
        server.end_watches("Pod")
        await until(lambda: server.count("watch", "Pod") == 2)
        server.delete("Pod", "shop", "db")
        server.put(pod("web", "10.1.0.9"))
        server.put(pod("new", "10.1.0.8"))
        server.compact()
        count = len(plane.batches)
        assert gate.gate is not None
        gate.gate.set()
        await until(lambda: len(plane.batches) > count)
        assert plane.names("Pod") == {"web", "new"}
        changed = {one.name for one in plane.batches[count].changes}
        assert changed == {"web", "new", "db"}
        assert server.count("list", "Pod") == 2


async def test_a_dropped_watch_goes_on_where_it_was_without_a_list(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("Pod"))
        server.drop()
        server.put(pod("new", "10.1.0.8"))
        await until(lambda: "new" in plane.names("Pod"))
        assert server.count("list", "Pod") == 1
        assert plane.source.age() < 5


async def test_a_long_list_comes_in_pages_and_counts_only_when_complete(server: ApiServer) -> None:
    server.page_limit = 3
    for number in range(10):
        server.put(pod(f"p{number}", f"10.2.0.{number}"))
    async with watching(server) as plane:
        await synced(plane)
        assert len(plane.names("Pod")) == 12
        pages = [one for one in server.requests if one.path == PATHS["Pod"] and one.verb == "list"]
        assert len(pages) == 4
        assert all("resourceVersion" not in one.query for one in pages)


async def test_a_list_whose_token_expires_is_begun_anew_and_in_the_end_taken_whole(server: ApiServer) -> None:
    server.page_limit, server.forget_tokens = 3, 2
    for number in range(10):
        server.put(pod(f"p{number}", f"10.2.0.{number}"))
    async with watching(server) as plane:
        await synced(plane)
        assert len(plane.names("Pod")) == 12
        asked = [one.query for one in server.requests if one.path == PATHS["Pod"] and one.verb == "list"]
        assert [("limit" in query, "continue" in query) for query in asked] == [
            (True, False),
            (True, True),
            (True, False),
            (True, True),
            (False, False),
        ]


async def test_a_kind_that_is_forbidden_holds_the_start_and_says_what_to_grant(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    message = 'authorizationpolicies.security.istio.io is forbidden: User "x" cannot list resource'
    refusal = Fault("list", "AuthorizationPolicy", times=10_000, answer=status(403, "Forbidden", message))
    server.faults.append(refusal)
    async with watching(server) as plane:
        await until(lambda: server.count("list", "AuthorizationPolicy") >= 3)
        assert plane.batches == []
        lines = [one.message for one in caplog.records if "forbidden" in one.message]
        assert len(lines) == 1
        assert "grant list and watch on authorizationpolicies.security.istio.io" in lines[0]
        refusal.times = 0
        await synced(plane)
        assert plane.names("AuthorizationPolicy") == {"deny"}


async def test_a_right_lost_later_changes_nothing_that_is_served(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("AuthorizationPolicy"))
        for verb in ("list", "watch"):
            server.faults.append(
                Fault(verb, "AuthorizationPolicy", times=10_000, answer=status(403, "Forbidden", "no"))
            )
        server.drop()
        await until(lambda: plane.health("AuthorizationPolicy").failures >= 3)
        assert plane.names("AuthorizationPolicy") == {"deny"}
        assert plane.source.age() > 0
        assert "403" not in plane.health("Pod").problem
        for fault in server.faults:
            fault.times = 0
        await until(lambda: plane.source.age() == 0)


async def test_a_crd_that_is_installed_later_is_picked_up(server: ApiServer) -> None:
    server.missing = {PATHS["ServiceEntry"], PATHS["Gateway"]}
    async with watching(server) as plane:
        await synced(plane)
        assert plane.health("Gateway").absent
        server.missing = set()
        entry = {
            "kind": "ServiceEntry",
            "metadata": {"name": "e", "namespace": "shop"},
            "spec": {"hosts": ["a.com"]},
        }
        server.put(entry)
        await until(lambda: plane.names("ServiceEntry") == {"e"})
        await until(lambda: not plane.health("Gateway").absent)


async def test_a_server_that_is_still_loading_is_not_believed_to_lack_a_kind(server: ApiServer) -> None:
    server.missing, server.ready = {PATHS["AuthorizationPolicy"]}, False
    async with watching(server) as plane:
        await until(lambda: server.count("list", "AuthorizationPolicy") >= 4)
        assert plane.batches == []
        server.ready, server.missing = True, set()
        await synced(plane)
        assert plane.names("AuthorizationPolicy") == {"deny"}


async def test_a_kind_that_is_missing_for_a_moment_keeps_its_objects(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("AuthorizationPolicy"))
        server.missing = {PATHS["AuthorizationPolicy"]}
        lists = server.count("list", "AuthorizationPolicy")
        server.drop()
        await until(lambda: server.count("list", "AuthorizationPolicy") > lists)
        server.missing = set()
        await until(lambda: plane.source.age() == 0 and server.watched("AuthorizationPolicy"))
        assert all(key("AuthorizationPolicy", "deny") not in batch.changes for batch in plane.batches[1:])


async def test_a_kind_that_stays_missing_is_gone(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("AuthorizationPolicy"))
        server.missing = {PATHS["AuthorizationPolicy"]}
        server.drop()
        await until(lambda: plane.names("AuthorizationPolicy") == set())
        assert plane.health("AuthorizationPolicy").absent


async def test_a_cluster_with_the_older_version_of_a_kind_is_read(server: ApiServer) -> None:
    server.missing = {PATHS["PeerAuthentication"]}
    older = PATHS["PeerAuthentication"].replace("/v1/", "/v1beta1/")
    strict = {
        "kind": "PeerAuthentication",
        "metadata": {"name": "d", "namespace": "shop", "resourceVersion": "7"},
    }
    server.objects[older] = {("shop", "d"): {**strict, "spec": {"mtls": {"mode": "STRICT"}}}}
    async with watching(server) as plane:
        await synced(plane)
        assert plane.names("PeerAuthentication") == {"d"}
        await until(lambda: any(path == older for path, _ in server.watchers.values()))


GARBAGE = {
    "not JSON": b"<html>502 Bad Gateway</html>\n",
    "no event": b'["ADDED", {}]\n',
    "unknown type": json.dumps({"type": "RENAMED", "object": pod("x", resourceVersion="900")}).encode()
    + b"\n",
    "no metadata": b'{"type": "ADDED", "object": {"kind": "Pod"}}\n',
    "no name": b'{"type": "MODIFIED", "object": {"metadata": {"resourceVersion": "900"}}}\n',
    "no version": json.dumps({"type": "ADDED", "object": pod("x")}).encode() + b"\n",
    "not UTF-8": b'{"type": "ADDED", "object": "\xff\xfe"}\n',
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
async def test_garbage_in_a_watch_brings_a_new_list_and_no_wrong_object(
    server: ApiServer, garbage: bytes
) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("Pod"))
        server.raw("Pod", garbage)
        await until(lambda: server.count("list", "Pod") == 2)
        server.put(pod("new", "10.1.0.8"))
        await until(lambda: plane.names("Pod") == {"web", "db", "new"})


async def test_an_event_that_is_cut_in_the_middle_is_not_applied(server: ApiServer) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("Pod"))
        line = json.dumps({"type": "ADDED", "object": pod("half", resourceVersion="999")}).encode()
        server.raw("Pod", line[: len(line) // 2])
        server.end_watches("Pod")
        await until(lambda: server.count("watch", "Pod") == 2)
        server.put(pod("new", "10.1.0.8"))
        await until(lambda: "new" in plane.names("Pod"))
        assert "half" not in plane.names("Pod")


async def test_a_policy_that_cannot_be_read_keeps_its_last_good_version_and_is_reported(
    server: ApiServer,
) -> None:
    async with watching(server) as plane:
        await synced(plane)
        await until(lambda: server.watched("AuthorizationPolicy"))
        good = plane.objects[key("AuthorizationPolicy", "deny")]
        server.put(policy("deny", rules=[{"form": []}]))
        await until(lambda: plane.errors)
        assert plane.errors == [
            "cluster: AuthorizationPolicy shop/deny: spec.rules[0].form: unknown field; known here: from, to, when"
        ]
        assert plane.objects[key("AuthorizationPolicy", "deny")] == good
        server.put(namespace("other"))
        server.compact()
        server.drop()
        await until(lambda: server.count("list", "AuthorizationPolicy") == 2)
        await until(lambda: server.watched("AuthorizationPolicy"))
        assert plane.objects[key("AuthorizationPolicy", "deny")] == good
        server.delete("AuthorizationPolicy", "shop", "deny")
        await until(lambda: plane.names("AuthorizationPolicy") == set())
        assert plane.errors == []


async def test_while_the_server_is_away_the_last_good_state_stays_and_its_age_grows(tmp_path: Path) -> None:
    server = ApiServer(tmp_path)
    server.put(pod("web"))
    async with trio.open_nursery() as nursery:
        away = trio.CancelScope()

        async def first() -> None:
            with away:
                async with server.serve():
                    ready.set()
                    await trio.sleep_forever()

        ready = trio.Event()
        nursery.start_soon(first)
        await ready.wait()
        async with watching(server) as plane:
            await synced(plane)
            await until(lambda: plane.source.age() == 0 and server.watched("Pod"))
            away.cancel()
            await until(lambda: plane.source.age() > 0.3)
            assert plane.names("Pod") == {"web"}
            assert "check that the API server is up" in plane.health("Pod").problem
            server.delete("Pod", "shop", "web")
            server.put(pod("db", "10.1.0.6"))
            async with server.serve():
                await until(lambda: plane.names("Pod") == {"db"})
                await until(lambda: plane.source.age() == 0)
        nursery.cancel_scope.cancel()


async def test_a_server_with_another_ca_is_not_spoken_to(server: ApiServer, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(pki.Authority.root().pem)
    async with watching(server, dataclasses.replace(server.access, authority=Pem(other))) as plane:
        await until(lambda: plane.health("Pod").problem)
        assert "its certificate is not accepted" in plane.health("Pod").problem
        assert server.requests == []
        # The file is corrected, as when a CA is renewed: no restart is needed.
        assert server.access.authority is not None
        other.write_bytes(server.access.authority.read())
        await synced(plane)


async def test_a_renewed_token_file_is_taken_up(server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    access = dataclasses.replace(server.access, token="", token_file=file)
    async with watching(server, access) as plane:
        await until(lambda: "renew them" in plane.health("Pod").problem)
        file.write_text(TOKEN + "\n")
        await synced(plane)


async def test_a_watch_that_hangs_is_given_up_and_gone_on_with(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SILENCE", 0.2)
    silent = Fault("watch", "Pod", gate=trio.Event())
    server.faults.append(silent)
    async with watching(server) as plane:
        await until(lambda: server.count("watch", "Pod") >= 2)
        assert server.count("list", "Pod") == 1
        server.put(pod("new", "10.1.0.8"))
        await until(lambda: "new" in plane.names("Pod"))


async def test_an_overloaded_server_is_given_the_time_it_asks_for(server: ApiServer) -> None:
    busy = status(429, "TooManyRequests", "busy")
    server.faults.append(Fault("list", "Pod", answer=busy, headers=[("retry-after", "1")]))
    begin = trio.current_time()
    async with watching(server) as plane:
        await synced(plane)
        assert trio.current_time() - begin >= 1.0
        assert server.count("list", "Pod") == 2


async def test_a_server_that_ends_each_watch_at_once_is_asked_ever_less(server: ApiServer) -> None:
    server.faults.append(Fault("watch", "Pod", times=10_000, cut=True))
    async with watching(server) as plane:
        await synced(plane)
        with trio.move_on_after(0.5):
            await trio.sleep_forever()
        # Waits of at least 10, 20, 40, 80, 160, 320 ms: half a second has room for six.
        assert 2 <= server.count("watch", "Pod") <= 7
