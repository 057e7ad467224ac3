"""One of our engines and one ztunnel in dedicated mode, each in a network namespace, no mesh around them.

The ztunnel reads its state from a file (LOCAL_XDS_PATH) and gets its certificate from our control plane; its
identity is `shop/rust`. The engine is at the other end of the link, as `shop/ours`, with a scripted owner.
A ztunnel takes the address a connection was made to for its destination, so a service whose port is 15001, on an
address of the ztunnel's own namespace, reaches its outbound listener without any redirection.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from ebpf import netns
from istiodlite.ca import authority, tokens
from istiodlite.ca.caller import Caller
from tests.interop.ztunnel.binary import binary
from tests.support import pki
from tests.support.enginehost import EngineHost
from tests.support.ports import wait_until

ROOT = Path(__file__).resolve().parents[3]
RUST_IP, OUR_IP, SERVICE_IP = "10.99.0.1", "10.99.0.2", "10.99.1.1"
OUTBOUND, HBONE = 15001, 15008
APP = 18000  # where the service leads; the engine decides what becomes of it
RUST, OURS = (pki.spiffe(name, "shop") for name in ("rust", "ours"))
_GRACE = 6
_numbers = itertools.count()


def _workload(name: str, address: str, **more: Any) -> dict[str, Any]:
    return {
        "uid": f"Kubernetes//Pod/shop/{name}",
        "name": name,
        "namespace": "shop",
        "serviceAccount": name,
        "trustDomain": "cluster.local",
        "workloadIps": [address],
        "protocol": "HBONE",
        "node": name,
        "network": "",
        "workloadName": name,
        "workloadType": "pod",
        "canonicalName": name,
        "canonicalRevision": "v1",
        "clusterId": "Kubernetes",
        **more,
    }


def state(*policies: dict[str, Any]) -> dict[str, Any]:
    """What the ztunnel knows: both workloads, a service in front of ours, a service of its own, policies."""
    name = "shop/ours.shop.svc.cluster.local"
    own = "shop/rust.shop.svc.cluster.local"
    service = {"namespace": "shop", "canonical": True}
    return {
        "workloads": [
            _workload("rust", RUST_IP, services={own: {80: 18001}}),
            _workload("ours", OUR_IP, services={name: {OUTBOUND: APP}}),
        ],
        "services": [
            {
                **service,
                "name": "ours",
                "hostname": name.partition("/")[2],
                "vips": [f"/{SERVICE_IP}"],
                "ports": {OUTBOUND: APP},
            },
            {
                **service,
                "name": "rust",
                "hostname": own.partition("/")[2],
                "vips": ["/10.99.1.2"],
                "ports": {80: 18001},
            },
        ],
        "policies": list(policies),
    }


class Lab:
    """`inside_rust` and `inside_ours` run a block in a namespace; sockets made there stay there."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self._limits = limits
        self.folder = folder
        self.names = [f"zl{os.getpid()}-{next(_numbers)}-{side}" for side in ("rust", "ours")]
        self._closing = contextlib.ExitStack()
        self._rust: subprocess.Popen[bytes] | None = None
        self.log_file = folder / "ztunnel.log"

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as undo:
            undo.push(self._closing)
            self._network()
            self._control_plane()
            self.start_rust()
            self._engine()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # -- what there is

    def _network(self) -> None:
        a, b = self.names
        for name in self.names:
            _ip("netns", "add", name)
            self._closing.callback(_ip, "netns", "del", name)
        _ip("link", "add", "zl0", "netns", a, "type", "veth", "peer", "name", "zl0", "netns", b)
        for name, address in ((a, RUST_IP), (b, OUR_IP)):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "zl0")
            _ip("-n", name, "link", "set", "zl0", "up")
        _ip("-n", a, "address", "add", f"{SERVICE_IP}/32", "dev", "lo")
        self._fds = [os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in self.names]
        for fd in self._fds:
            self._closing.callback(os.close, fd)

    def inside_rust(self) -> contextlib.AbstractContextManager[None]:
        return netns.inside(self._fds[0])

    def inside_ours(self) -> contextlib.AbstractContextManager[None]:
        return netns.inside(self._fds[1])

    def _control_plane(self) -> None:
        data, objects = self.folder / "data", self.folder / "objects"
        objects.mkdir()
        issuer = authority.Authority.load_or_create(data, "cluster.local")
        assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
        self.issuer = pki.Authority(issuer.certificate, issuer.key, (), (issuer.certificate,))
        (self.folder / "root.pem").write_bytes(issuer.roots_pem)
        now = datetime.datetime.now(datetime.UTC)
        token = tokens.mint(tokens.load_or_create_token_key(data), Caller("shop", "rust"), now)
        (self.folder / "token").write_text(token)
        words = ["-m", "istiodlite", "serve", "--objects", str(objects), "--data", str(data)]
        with (self.folder / "istiodlite.log").open("wb") as log, self.inside_rust():
            process = subprocess.Popen(
                [sys.executable, *words, "--listen", "127.0.0.1:15012"], stderr=log, cwd=ROOT
            )
        self._closing.callback(_end, process)
        self._wait_page("http://127.0.0.1:15014/ready")

    def start_rust(self, *policies: dict[str, Any], **environment: str) -> None:
        """Start the ztunnel (again) with these policies, and wait until it is ready."""
        self.stop_rust()
        (self.folder / "state.yaml").write_text(yaml.safe_dump(state(*policies)))
        with self.log_file.open("ab") as log, self.inside_rust():
            self._rust = subprocess.Popen(
                [binary(), "proxy", "ztunnel"],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={
                    "PATH": os.environ["PATH"],
                    "PROXY_MODE": "dedicated",
                    "PROXY_WORKLOAD_INFO": "shop/rust/rust",
                    "NODE_NAME": "rust",
                    "XDS_ADDRESS": "",
                    "LOCAL_XDS_PATH": str(self.folder / "state.yaml"),
                    "CA_ADDRESS": "https://127.0.0.1:15012",
                    "ALT_CA_HOSTNAME": "istiod.istio-system.svc",
                    "CA_ROOT_CA": str(self.folder / "root.pem"),
                    "AUTH_TOKEN": str(self.folder / "token"),
                    "ENABLE_ORIG_SRC": "false",
                    "ISTIO_META_DNS_CAPTURE": "false",
                    "TERMINATION_GRACE_PERIOD_SECONDS": str(_GRACE),
                    **environment,
                },
            )
        self._closing.callback(self.stop_rust)
        self._wait_page("http://127.0.0.1:15021/healthz/ready")

    def stop_rust(self) -> None:
        """End it, if it runs."""
        if self._rust is not None:
            self._rust.kill()
            self._rust.wait()
            self._rust = None

    @property
    def rust(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._rust is not None
        return self._rust

    def _wait_page(self, url: str) -> None:
        def there() -> bool:
            assert self._rust is None or self._rust.poll() is None, self.log_since(0)[-3:]
            with contextlib.suppress(OSError), self.inside_rust(), urllib.request.urlopen(url, timeout=2):  # noqa: S310
                return True
            return False

        wait_until(there, url, timeout=20, every=0.05)

    def _engine(self) -> None:
        with self.inside_ours():
            self.host = EngineHost(
                workers=1,
                max_sessions=64,
                connect_timeout=2.0,
                handshake_timeout=2.0,
                decision_timeout=5.0,
                **self._limits,
            )
        self._closing.callback(self.host.close)
        self.host.identity(1, self.issuer.leaf(OURS))
        self.tag = 0

    # -- what tests do

    def next_tag(self) -> int:
        self.tag += 1
        return self.tag

    def log_since(self, position: int) -> list[str]:
        """The ztunnel's lines after an earlier size of its log."""
        return self.log_file.read_bytes()[position:].decode().splitlines()

    def log_size(self) -> int:
        return self.log_file.stat().st_size

    def wait_log(self, text: str, position: int = 0, timeout: float = 30.0) -> str:
        """The first line with this text."""
        deadline = time.monotonic() + timeout
        while True:
            for line in self.log_since(position):
                if text in line:
                    return line
            assert time.monotonic() < deadline, (
                f"ztunnel never said {text!r}: {self.log_since(position)[-5:]}"
            )
            time.sleep(0.02)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
