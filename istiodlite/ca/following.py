"""The issuer of a cluster follows where it is kept: a plugged-in CA that is exchanged, a root that is replaced."""

import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from istiodlite.ca import secretroots
from istiodlite.ca.authority import Authority
from istiodlite.ca.files import DataError
from istiodlite.ca.rotation import Step, Times, due_at, next_step
from istiodlite.ca.secrets import SECRET, authority_of, encoded, files_of, plugged_in
from istiodlite.kube.client import ApiError, KubeClient

_log = logging.getLogger("istiodlite.ca")
_EVERY = 10.0


class FollowedAuthority:
    """An issuer that is replaced as a whole; other threads read it."""

    def __init__(self, first: Authority) -> None:
        self._current = first

    def snapshot(self) -> Authority:
        """As it stands now."""
        return self._current

    def replace(self, new: Authority) -> None:
        """From the next certificate on."""
        if new.certificate != self._current.certificate:
            _log.warning("issuer changed: serial %x signs from now on", new.certificate.serial_number)
        elif new.roots_pem != self._current.roots_pem:
            _log.warning("roots changed; the issuer stays")
        self._current = new


class _Teller:
    """Says a problem once, until it is another or gone."""

    def __init__(self) -> None:
        self._told = ""

    def say(self, problem: str) -> None:
        if problem and problem != self._told:
            _log.error("roots: %s; going on with what was there", problem)
        self._told = problem


class FolderFollower:
    """Reads a mounted `cacerts` again and again. One that cannot be used is said and passed over."""

    def __init__(self, authority: FollowedAuthority, folder: Path, trust_domain: str) -> None:
        self._authority, self._folder, self._trust_domain = authority, folder, trust_domain
        self._seen: Mapping[str, bytes] | None = None
        self._teller = _Teller()

    async def run(self) -> None:
        """Endless; cancel to stop."""
        while True:
            await trio.to_thread.run_sync(self.look)
            await trio.sleep(_EVERY)

    def look(self) -> None:
        """Takes what is there now, if it is another."""
        try:
            files = plugged_in(self._folder)
            if files is None:
                raise DataError(f"{self._folder}: the plugged-in CA is gone; put it back")
            if files != self._seen:
                now = datetime.datetime.now(datetime.UTC)
                self._authority.replace(authority_of(files, self._trust_domain, str(self._folder), now))
                self._seen = files
            self._teller.say("")
        except DataError as error:
            self._teller.say(str(error))


class SecretFollower:
    """Reads the secret again and again, and takes the steps of a change of roots that are due. Of several replicas
    one is faster: the others are refused by the version and read what it wrote."""

    def __init__(
        self,
        authority: FollowedAuthority,
        client: KubeClient,
        namespace: str,
        trust_domain: str,
        times: Times = Times(),  # noqa: B008
    ) -> None:
        self._authority, self._client, self._times = authority, client, times
        self._path, self._where = secret_path(namespace), f"secret {namespace}/{SECRET}"
        self._trust_domain = trust_domain
        self._seen = ""
        self._teller = _Teller()

    async def run(self) -> None:
        """Endless; cancel to stop."""
        while True:
            await self.look(datetime.datetime.now(datetime.UTC))
            await trio.sleep(_EVERY)

    async def look(self, now: datetime.datetime) -> Step | None:
        """Takes what the secret holds now; the step taken, if one was due."""
        try:
            secret = await self._client.get(self._path)
            files = files_of(secret, self._where)
            if (version := secret["metadata"]["resourceVersion"]) != self._seen:
                self._authority.replace(secretroots.authority(files, self._trust_domain, self._where, now))
                self._seen = version
            self._teller.say("")
            return await self._advance(secret, files, now)
        except DataError as error:
            self._teller.say(str(error))
        except ApiError as error:
            if error.code != 409:
                self._teller.say(f"{self._where} cannot be read or written: {error}")
            self._client.renew()
        return None

    async def _advance(self, secret: Any, files: Mapping[str, bytes], now: datetime.datetime) -> Step | None:
        """A change is begun by a person; it goes on by itself."""
        roots = secretroots.state_of(files, self._where)
        step = next_step(roots)
        if step is Step.INTRODUCE or now < due_at(roots, self._times):
            return None
        after = secretroots.take(step, files, self._trust_domain, self._where, now)
        await self._client.send("PUT", self._path, {**secret, "data": encoded(after)})
        _log.warning("roots in %s: %s", self._where, step)
        return step


async def change_by_hand(
    client: KubeClient, namespace: str, trust_domain: str, now: datetime.datetime, *, act: bool, at_once: bool
) -> tuple[Step | None, Step, datetime.datetime]:
    """Begins a change, or (`at_once`) takes its next step: what was done, what follows, when. DataError, ApiError."""
    path, where = secret_path(namespace), f"secret {namespace}/{SECRET}"
    secret = await client.get(path)
    files: Mapping[str, bytes] = files_of(secret, where)
    step, done = next_step(secretroots.state_of(files, where)), None
    if at_once or (act and step is Step.INTRODUCE):
        files = secretroots.take(step, files, trust_domain, where, now)
        await client.send("PUT", path, {**secret, "data": encoded(files)})
        done = step
    roots = secretroots.state_of(files, where)
    return done, next_step(roots), due_at(roots)


def secret_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets/{SECRET}"
