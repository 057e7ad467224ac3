"""Keeps the ValidatingWebhookConfiguration of the cluster right: the root that our certificate leads to, and
failurePolicy Fail once somebody answers, as istiod does with its own."""

import base64
import logging
from collections.abc import Callable, Mapping
from typing import Any

import trio

from istiodlite.kube.client import ApiError, KubeClient

_log = logging.getLogger("istiodlite.webhook")
NAME = "istiodlite-validator"
PATH = f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}"
JSON_PATCH = "application/json-patch+json"
_EVERY = 10.0


def corrections(configuration: Mapping[str, Any], roots: bytes) -> list[dict[str, Any]]:
    """A JSON patch (RFC 6902) that makes the API server trust us and wait for our answer; empty if it does."""
    bundle = base64.b64encode(roots).decode()
    found = configuration.get("webhooks")
    patch: list[dict[str, Any]] = []
    for index, hook in enumerate(found if isinstance(found, list) else ()):
        client = hook.get("clientConfig") or {}
        if client.get("caBundle") != bundle:
            patch.append({"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": bundle})
        if hook.get("failurePolicy") != "Fail":
            patch.append({"op": "add", "path": f"/webhooks/{index}/failurePolicy", "value": "Fail"})
    version = configuration["metadata"]["resourceVersion"]
    check = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    return [check, *patch] if patch else []


class Registration:
    """Looks every few seconds; roots rotate, and somebody may apply the manifest anew."""

    def __init__(self, client: KubeClient, roots: Callable[[], bytes]) -> None:
        self._client, self._roots = client, roots
        self._told = ""
        self.state = "not looked yet"

    async def run(self) -> None:
        """Endless; cancel to stop."""
        while True:
            await self._step()
            await trio.sleep(_EVERY)

    async def _step(self) -> None:
        try:
            patch = corrections(await self._client.get(PATH), self._roots())
            if patch:
                await self._client.send("PATCH", PATH, patch, content_type=JSON_PATCH)
                _log.info("webhook configuration %s: root and failurePolicy set", NAME)
            self.state, self._told = "registered", ""
        except ApiError as error:
            self._failed(error)

    def _failed(self, error: ApiError) -> None:
        if error.code == 404:
            self.state = f"off: there is no ValidatingWebhookConfiguration {NAME}"
        elif error.code != 409:
            advice = "; grant get and patch on it" if error.code == 403 else ""
            self.state = f"{error}{advice}"
        if self.state != self._told:
            self._told = self.state
            _log.warning("admission webhook: %s", self.state)
