"""What the control plane is fed with: a folder with a CA of its own, or a Kubernetes cluster."""

import datetime
import logging
import os
import random
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from istiodlite.ca.authority import Authority, Issuer
from istiodlite.ca.caller import Caller
from istiodlite.ca.distribution import RootDistribution
from istiodlite.ca.files import DataError
from istiodlite.ca.following import FolderFollower, FollowedAuthority, SecretFollower
from istiodlite.ca.roots import RotatingAuthority
from istiodlite.ca.secrets import authority_of, load_or_create_secret, plugged_in
from istiodlite.ca.tokenreview import TokenReviewer
from istiodlite.ca.tokens import load_or_create_token_key, verify
from istiodlite.kube import Access, AccessError, ApiError, KubeClient
from istiodlite.kube.reflector import wait_of
from istiodlite.machines import Registrar
from istiodlite.registry import Registry
from istiodlite.server.config import KubeConfig, ServeConfig, StartError
from istiodlite.sources.folder import Batch, Folder, readable
from istiodlite.sources.kube import KubeSource
from istiodlite.sources.source import FolderSource, Source
from istiodlite.status import StatusWriter
from istiodlite.status.writer import removed
from istiodlite.webhook import Registration

_log = logging.getLogger("istiodlite")


_ROOTS_CHECK = 10.0


def _pass_over(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Inputs:
    """`review` tells who a token speaks for (raises TokenError), in the loop of the gRPC server. `note` hears
    of each batch, `pushed` of each time the registry took one, `tasks` run as long as the server, `describe` adds
    to its debug page. `machines` registers those that ask for it; a folder of objects has nowhere to put them."""

    source: Source
    authority: Issuer
    review: Callable[[str], Awaitable[Caller]]
    note: Callable[[Batch], None] = _pass_over
    pushed: Callable[[Registry], None] = _pass_over
    tasks: tuple[Callable[[], Awaitable[None]], ...] = ()
    describe: Callable[[], dict[str, Any]] = dict
    machines: Registrar | None = None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@asynccontextmanager
async def open_inputs(config: ServeConfig) -> AsyncGenerator[Inputs]:
    """As configured. Raises StartError, DataError; waits for a cluster that cannot be reached."""
    if config.kube is None:
        yield _from_folder(config)
        return
    try:
        client = KubeClient(config.kube.access)
    except AccessError as error:
        raise StartError(str(error)) from None
    async with client:
        yield await _from_cluster(config, config.kube, client)


def _from_folder(config: ServeConfig) -> Inputs:
    if config.objects is None or config.data is None:
        raise StartError("a folder of objects needs --objects and --data")
    problem = readable(config.objects)
    if problem:
        raise StartError(problem)
    authority = RotatingAuthority(config.data, config.mesh.trust_domain)
    key = load_or_create_token_key(config.data).public_key()

    async def review(token: str) -> Caller:
        return verify(token, key, _now())

    source = FolderSource(Folder(config.objects, config.size_limit))
    return Inputs(source, authority, review, tasks=(lambda: _rotate(authority),))


async def _rotate(authority: RotatingAuthority) -> None:
    """Looks every few seconds: the command may have taken a step too."""
    while True:
        try:
            await trio.to_thread.run_sync(authority.refresh, _now())
        except DataError as error:
            _log.error("roots: %s", error)
        await trio.sleep(_ROOTS_CHECK)


async def _from_cluster(config: ServeConfig, kube: KubeConfig, client: KubeClient) -> Inputs:
    access: Access = kube.access
    _log.info("cluster %s as of %s", access.server, access.origin)
    if access.insecure:
        _log.warning("the API server's certificate is not checked (insecure-skip-tls-verify)")
    authority, follow = await _cluster_authority(config, kube, client)
    distribution = RootDistribution(client, lambda: authority.snapshot().roots_pem)
    status = StatusWriter(client)
    registrar = Registrar(
        client, status.report, status.version, os.environ.get("POD_NAME") or socket.gethostname()
    )

    def note(batch: Batch) -> None:
        distribution.note(batch.changes)
        registrar.note(batch.changes)
        status.gone(removed(batch.changes))

    registration = Registration(client, lambda: authority.snapshot().roots_pem)
    webhook = (registration.run,) if config.webhook else ()
    return Inputs(
        KubeSource(client, saw=status.saw),
        authority,
        # A client of its own: it lives in the gRPC server's loop.
        TokenReviewer(lambda: KubeClient(access)).caller,
        note,
        lambda registry: status.pushed(registry, registry.rebuilt),
        (follow, distribution.run, status.run, registrar.run, *webhook),
        lambda: {
            "rootConfigMaps": distribution.describe(),
            "status": status.describe(),
            "machines": registrar.describe(),
            "webhook": registration.state if webhook else "off",
        },
        machines=registrar,
    )


async def _cluster_authority(
    config: ServeConfig, kube: KubeConfig, client: KubeClient
) -> tuple[FollowedAuthority, Callable[[], Awaitable[None]]]:
    """The plugged-in CA if there is one, else the root in the secret; and the task that follows it."""
    domain = config.mesh.trust_domain
    if kube.cacerts is not None and (files := plugged_in(kube.cacerts)) is not None:
        _log.info("signing with the CA in %s", kube.cacerts)
        authority = FollowedAuthority(authority_of(files, domain, str(kube.cacerts), _now()))
        return authority, FolderFollower(authority, kube.cacerts, domain).run
    authority = FollowedAuthority(await _secret_authority(config, client))
    return authority, SecretFollower(authority, client, config.mesh.root_namespace, domain).run


async def _secret_authority(config: ServeConfig, client: KubeClient) -> Authority:
    """Tries until the API server answers."""
    tries, told = 0, ""
    while True:
        try:
            return await load_or_create_secret(
                client, config.mesh.root_namespace, config.mesh.trust_domain, _now()
            )
        except ApiError as error:
            problem = f"the root cannot be had: {error}{_advice(error, config.mesh.root_namespace)}"
            if problem != told:
                _log.warning("%s", problem)
                told = problem
        client.renew()
        tries += 1
        await trio.sleep(wait_of(tries, random.random()))  # noqa: S311  (spreads load)


def _advice(error: ApiError, namespace: str) -> str:
    if error.code == 403:
        return f"; grant get, update and create on secrets in {namespace}"
    if error.code == 404:
        return f"; create the namespace {namespace}"
    return ""
