"""kubeconfig files, and the search for credentials that kubectl does."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import yaml

from istiodlite.kube.access import Access, AccessError, Pem, in_cluster, read_file

_TOKEN_ADVICE = "use a token, as of `kubectl create token`, or a client certificate"  # noqa: S105
_UNSUPPORTED_USER = {
    "exec": f"credential plugins are not run; {_TOKEN_ADVICE}",
    "auth-provider": f"auth providers are gone from Kubernetes; {_TOKEN_ADVICE}",
    "username": f"basic authentication is gone from Kubernetes; {_TOKEN_ADVICE}",
    "as": f"impersonation is not supported; {_TOKEN_ADVICE}",
}


def find_access(kubeconfig: Path | None, context: str, environment: Mapping[str, str]) -> Access:
    """Credentials from `kubeconfig` if given, else of the pod we run in, else as kubectl finds them
    ($KUBECONFIG, ~/.kube/config). `context` empty: the current one. Raises AccessError."""
    if kubeconfig is not None:
        return load_kubeconfig([kubeconfig], context)
    named = [Path(part) for part in environment.get("KUBECONFIG", "").split(":") if part]
    if not context and (pod := in_cluster(environment)) is not None:
        return pod
    home = Path(environment.get("HOME", "/")) / ".kube" / "config"
    files = [path for path in named or [home] if path.exists()]
    if not files:
        where = ", ".join(str(path) for path in named or [home])
        raise AccessError(f"no cluster: not in a pod, and {where} is not there; use --kubeconfig FILE")
    return load_kubeconfig(files, context)


def load_kubeconfig(files: Sequence[Path], context: str = "") -> Access:
    """One context of one or more files; of what several name, the first counts. Raises AccessError."""
    merged = _Merged([_Config(path) for path in files])
    name = context or merged.current
    if not name:
        raise AccessError(f"{files[0]}: has no current-context; choose one with --context")
    chosen = merged.find("contexts", "context", name)
    cluster = merged.find("clusters", "cluster", chosen.text("cluster"))
    user = merged.find("users", "user", chosen.text("user")) if chosen.text("user") else chosen.nothing()
    return _access(cluster, user)


class _Entry:
    """A cluster, user or context with the file it is from, for relative paths and errors."""

    def __init__(self, file: Path, title: str, values: Mapping[str, Any]) -> None:
        self.file, self.title, self.values = file, title, values

    def nothing(self) -> "_Entry":
        return _Entry(self.file, self.title, {})

    def fail(self, message: str) -> NoReturn:
        raise AccessError(f"{self.file}: {self.title}: {message}")

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            self.fail(f"{name} must be text")
        return value or ""

    def path(self, name: str) -> Path | None:
        text = self.text(name)
        return self.file.parent / text if text else None

    def pem(self, name: str) -> Pem | None:
        """`name`-data (base64) before the file `name`."""
        data = self.text(f"{name}-data")
        if not data:
            path = self.path(name)
            return None if path is None else Pem(path)
        try:
            return Pem(data=base64.b64decode(data, validate=True))
        except binascii.Error:
            self.fail(f"{name}-data is not base64; write the file's name to {name}")


class _Config:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            value = yaml.safe_load(read_file(path))
        except (yaml.YAMLError, UnicodeDecodeError):
            raise AccessError(f"{path}: not YAML; name a kubeconfig file") from None
        if not isinstance(value, dict):
            raise AccessError(f"{path}: not a kubeconfig; name one that has clusters and contexts")
        self.value: dict[str, Any] = value

    def named(self, plural: str) -> dict[str, Any]:
        items = self.value.get(plural) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise AccessError(f"{self.path}: {plural} must be a list of name and settings")
        return {str(item.get("name")): item for item in items}


class _Merged:
    def __init__(self, configs: Sequence[_Config]) -> None:
        self._configs = configs
        currents = (config.value.get("current-context") for config in configs)
        self.current = next((one for one in currents if isinstance(one, str) and one), "")

    def find(self, plural: str, singular: str, name: str) -> _Entry:
        for config in self._configs:
            values = config.named(plural).get(name, {}).get(singular)
            if isinstance(values, dict):
                return _Entry(config.path, f'{singular} "{name}"', values)
        known = ", ".join(sorted({name for config in self._configs for name in config.named(plural)}))
        where = self._configs[0].path
        raise AccessError(f'{where}: no {singular} "{name}"; there are: {known or "none"}')


def _access(cluster: _Entry, user: _Entry) -> Access:
    server = cluster.text("server").rstrip("/")
    parts = urlsplit(server)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        cluster.fail("server must be a URL like https://10.0.0.1:6443")
    if cluster.text("proxy-url"):
        cluster.fail("proxy-url is not supported; give an address that is reached directly")
    for name, advice in _UNSUPPORTED_USER.items():
        if user.values.get(name):
            user.fail(f"{name}: {advice}")
    certificate, key = user.pem("client-certificate"), user.pem("client-key")
    if (certificate is None) != (key is None):
        user.fail("client-certificate and client-key belong together; give both")
    token_file, token = user.path("tokenFile"), user.text("token")
    if parts.scheme == "http" and (token_file or token or certificate):
        cluster.fail("credentials are not sent in clear; use https")
    return Access(
        server=server,
        authority=cluster.pem("certificate-authority"),
        certificate=certificate,
        key=key,
        # As kubectl: the file counts, because it may be renewed.
        token="" if token_file else token,
        token_file=token_file,
        tls_name=cluster.text("tls-server-name"),
        insecure=cluster.values.get("insecure-skip-tls-verify") is True,
        origin=str(cluster.file),
    )
