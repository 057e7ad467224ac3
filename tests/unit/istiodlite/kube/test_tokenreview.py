"""Who a token speaks for, by the API server's word."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from istiodlite.ca.caller import Caller
from istiodlite.ca.tokenreview import TokenReviewer, caller_of, is_plausible
from istiodlite.ca.tokens import TokenError
from istiodlite.kube import KubeClient
from tests.unit.istiodlite.kube.apiserver import ApiServer, Fault, status

EXTRA = "authentication.kubernetes.io/"
GOOD: dict[str, Any] = {
    "authenticated": True,
    "audiences": ["istio-ca"],
    "user": {
        "username": "system:serviceaccount:istio-system:ztunnel",
        "groups": ["system:serviceaccounts", "system:authenticated"],
        "extra": {EXTRA + "pod-name": ["ztunnel-1"], EXTRA + "pod-uid": ["u1"], EXTRA + "node-name": ["n1"]},
    },
}
ZTUNNEL = Caller("istio-system", "ztunnel", "ztunnel-1", "u1", "n1")


def token(**claims: Any) -> str:
    payload = {"aud": ["istio-ca"], "exp": int(time.time()) + 600, **claims}
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "RS256"}, payload, "signature")
    )


def test_a_good_review_names_account_pod_and_node() -> None:
    assert caller_of({"status": GOOD}) == ZTUNNEL


def test_a_token_that_is_bound_to_no_pod_has_none() -> None:
    user = {**GOOD["user"], "extra": {}}
    assert caller_of({"status": {**GOOD, "user": user}}) == Caller("istio-system", "ztunnel")


@pytest.mark.parametrize(
    "changes",
    [
        {"authenticated": False},
        {"authenticated": "true"},
        {"audiences": []},
        {"audiences": ["https://kubernetes.default.svc"]},
        {"audiences": None},
        {"user": None},
        {"user": {**GOOD["user"], "username": "admin"}},
        {"user": {**GOOD["user"], "username": "system:serviceaccount:istio-system"}},
        {"user": {**GOOD["user"], "username": "system:serviceaccount:a:b:c"}},
        {"user": {**GOOD["user"], "username": "system:serviceaccount::x"}},
        {"user": {**GOOD["user"], "groups": ["system:authenticated"]}},
        {"user": {**GOOD["user"], "groups": None}},
    ],
)
def test_any_other_review_lets_nobody_in(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenError):
        caller_of({"status": {**GOOD, **changes}})


@pytest.mark.parametrize("review", [None, {}, {"status": None}, {"status": []}])
def test_an_answer_that_is_no_review_lets_nobody_in(review: Any) -> None:
    with pytest.raises(TokenError):
        caller_of(review)


def test_of_several_values_for_a_pod_none_is_believed() -> None:
    extra = {EXTRA + "pod-name": ["a", "b"], EXTRA + "pod-uid": "u1"}
    caller = caller_of({"status": {**GOOD, "user": {**GOOD["user"], "extra": extra}}})
    assert (caller.pod, caller.pod_uid) == ("", "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a service account token"),
        ("a.b", "not a service account token"),
        ("x.y.z", "not a service account token"),
        (token(exp=1), "expired"),
        (token(exp=True), "not a service account token"),
        (token(aud=["vault"]), "not for audience istio-ca; project the token with that audience"),
        (token(aud="istio-ca") + ".more", "not a service account token"),
        ("x" * 20_000, "token of 20000 bytes is too long"),
    ],
    ids=["none", "two-parts", "no-json", "over", "over-by-no-number", "other-audience", "four-parts", "huge"],
)
def test_what_cannot_be_a_good_token_is_not_asked_about(text: str, why: str) -> None:
    assert is_plausible(text, time.time()) == why


def test_a_plausible_token_is_asked_about() -> None:
    assert is_plausible(token(), time.time()) == ""
    assert is_plausible(token(aud="istio-ca"), time.time()) == ""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer(tmp_path)
    async with api.serve():
        yield api


async def ask(server: ApiServer, *tokens: str) -> list[Caller | str]:
    """As the gRPC thread does: from an asyncio loop of its own, all at once, then one after the other."""
    reviewer = TokenReviewer(lambda: KubeClient(server.access))

    async def one(text: str) -> Caller | str:
        try:
            return await reviewer.caller(text)
        except TokenError as error:
            return str(error)

    async def all_of_them() -> list[Caller | str]:
        together = await asyncio.gather(*(one(text) for text in tokens))
        return [*together, *[await one(text) for text in tokens]]

    return await trio.to_thread.run_sync(lambda: asyncio.run(all_of_them()))


@pytest.mark.trio
async def test_callers_that_come_together_with_one_token_cost_one_review(server: ApiServer) -> None:
    text = token()
    server.reviews[text] = GOOD
    assert await ask(server, *[text] * 10) == [ZTUNNEL] * 20
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")


@pytest.mark.trio
async def test_a_refusal_is_not_remembered(server: ApiServer) -> None:
    (first, second) = await ask(server, token())
    assert first == second == "token refused by the API server: unknown"
    assert len(server.requests) == 2


@pytest.mark.trio
async def test_nobody_is_let_in_while_the_server_cannot_be_asked(server: ApiServer) -> None:
    text = token()
    server.reviews[text] = GOOD
    server.faults.append(Fault("post", answer=status(403, "Forbidden", "no")))
    first, second = await ask(server, text)
    assert first == "the token cannot be reviewed: no; grant create on tokenreviews.authentication.k8s.io"
    assert second == ZTUNNEL
