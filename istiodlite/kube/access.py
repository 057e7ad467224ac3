"""Where the API server is and as whom to speak to it; the credentials a pod finds in its files."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class AccessError(Exception):
    """No usable credentials; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Pem:
    """PEM from a file, which is read anew when used (kubelets and cert-managers renew files), or a literal."""

    path: Path | None = None
    data: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        """Raises AccessError."""
        return self.data if self.path is None else read_file(self.path)

    def stamp(self) -> tuple[int, int]:
        """Changes when the file does."""
        if self.path is None:
            return (0, 0)
        try:
            status = self.path.stat()
        except OSError:
            return (-1, -1)
        return (status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class Access:
    """`server` is a URL without trailing slash. `authority` None: the system's CAs. `tls_name` is checked in
    the server's certificate in place of the URL's host. At most one of `token` and `token_file` is set."""

    server: str
    authority: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    tls_name: str = ""
    insecure: bool = False
    origin: str = ""

    def bearer(self) -> str:
        """The token to send now, empty for none. A file is read each time: tokens are renewed hourly.

        Raises AccessError.
        """
        if self.token_file is None:
            return self.token
        token = read_file(self.token_file).decode("ascii", "replace").strip()
        if not token:
            raise AccessError(f"{self.token_file}: is empty; mount the service account's token there")
        return token

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Changes when a file does that the TLS context was made of."""
        return tuple(pem.stamp() for pem in (self.authority, self.certificate, self.key) if pem is not None)

    def tls(self) -> ssl.SSLContext:
        """Raises AccessError."""
        try:
            roots = None if self.authority is None else self.authority.read().decode("ascii")
            context = ssl.create_default_context(cadata=roots)
        except (ssl.SSLError, ValueError):
            raise AccessError(f"{self.origin}: the CA is not a PEM certificate; correct it") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None and self.key is not None:
            _load_pair(context, self.certificate.read(), self.key.read(), self.origin)
        return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes, origin: str) -> None:
    """The ssl module takes files only; this one exists in memory."""
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, certificate.rstrip() + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError:
        raise AccessError(f"{origin}: client certificate and key are no PEM pair; correct them") from None
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AccessError(f"{path}: {error.strerror}; make it readable or correct its name") from None


def in_cluster(environment: Mapping[str, str], folder: Path = ACCOUNT_FOLDER) -> Access | None:
    """The service account of the pod we run in; None outside of a cluster. Raises AccessError."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return None
    if not (folder / "token").exists():
        raise AccessError(
            f"{folder}/token: not there; set automountServiceAccountToken: true on the pod, or use --kubeconfig"
        )
    where = f"[{host}]" if ":" in host else host
    return Access(
        server=f"https://{where}:{port}",
        authority=Pem(folder / "ca.crt"),
        token_file=folder / "token",
        origin="the pod's service account",
    )
