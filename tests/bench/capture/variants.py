"""What group `capture` compares.

In rows `capture-*` the listener accepts directly, and everything happens in one pod: the difference is the cost of
capturing alone. In rows `same-node-*` client and server are pods of one node.
"""

from __future__ import annotations

import os
import socket
import subprocess

from ebpf import netns
from ebpf.listeners import BACKLOG
from tests.bench.capture.cases import CAPTURE, TURBO
from tests.bench.capture.kernel import allow, attach, enrol
from tests.bench.capture.pods import sh
from tests.bench.capture.session import PodSession
from tests.bench.cases import Case
from tests.bench.namespace import CLIENT, SERVER, VIRTUAL_IP
from tests.bench.testbed import SERVER_ADDRESS, Session
from tests.bench.variants import Variant
from tests.bench.variants.envoy import Envoy
from tests.bench.variants.ours import Ours
from tests.bench.variants.ztunnel import RustZtunnel

ELSEWHERE = "10.96.0.20:80"
PROXIES = ("proxy", "envoy-c1", "ztunnel")

# What Istio's CNI plugin sets up in a pod for outbound traffic, in nft's words.
_REDIRECT = """
table ip mangle {{
  chain prerouting {{ type filter hook prerouting priority mangle; meta mark & 0xfff == 0x539 ct mark set 0x111; }}
  chain output {{ type route hook output priority mangle; ct mark & 0xfff == 0x111 meta mark set ct mark; }}
}}
table ip nat {{
  chain output {{
    type nat hook output priority -100;
    ip daddr 169.254.7.127 meta l4proto tcp accept
    meta l4proto tcp meta mark & 0xfff == 0x111 accept
    oifname "lo" ip daddr != 127.0.0.1 accept
    meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 redirect to :{port}
  }}
}}
"""


def is_capturing(case: Case) -> bool:
    """Whether the row is about capturing alone."""
    return case.name.startswith(CAPTURE)


class _InPods(Variant):
    def start(self, session: Session, case: Case) -> None:
        assert isinstance(session, PodSession)
        (self.alone if is_capturing(case) else self.between)(session, case)

    def alone(self, session: PodSession, case: Case) -> None:
        """In one pod, to a listener that accepts."""
        raise NotImplementedError

    def between(self, session: PodSession, case: Case) -> None:
        """From pod to pod."""
        raise NotImplementedError


class Product(_InPods):
    """Variant B of capture; the direct path."""

    name = "ours"

    def alone(self, session: PodSession, case: Case) -> None:
        pod = enrol(attach(session), session.pods, "client")
        session.accept_outbound(pod.outbound.fileno(), pod.outbound.getsockname()[1])
        session.entry = ELSEWHERE

    def between(self, session: PodSession, case: Case) -> None:
        session.serve()
        allow(session, accelerated=case.name.startswith(TURBO))
        session.entry = SERVER_ADDRESS


class NoMesh(_InPods):
    """Nothing captured, no proxy."""

    name = "none"

    def alone(self, session: PodSession, case: Case) -> None:
        port = _accepting(session)
        session.entry = f"{CLIENT}:{port}"

    def between(self, session: PodSession, case: Case) -> None:
        session.serve()
        session.entry = SERVER_ADDRESS


class Redirect(_InPods):
    """NAT REDIRECT with connection tracking, by nft: the rules of Istio's CNI plugin."""

    name = "redirect"

    def absent(self) -> str | None:
        try:
            sh("unshare --net nft add table ip albench")
        except (OSError, subprocess.CalledProcessError) as error:
            return f"nft does not work here: {error}"
        return None

    def meaningless(self, case: Case) -> str | None:
        return None if is_capturing(case) else "a row about the path between pods"

    def alone(self, session: PodSession, case: Case) -> None:
        port = _accepting(session)
        pod = session.pods.netns["client"]
        sh(f"nft -f - <<'END'\n{_REDIRECT.format(port=port)}\nEND", pod)
        session.undo.callback(sh, "nft flush ruleset", pod)
        session.entry = ELSEWHERE


def _accepting(session: PodSession) -> int:
    """A listener in the client's pod, dual stack as the agent's are, and a server that accepts from it; its port."""
    fd = session.pods.open("client")
    with netns.inside(fd):
        listener = socket.create_server(
            ("::", 0), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
        )
    os.close(fd)
    listener.setblocking(False)
    session.undo.callback(listener.close)
    port = int(listener.getsockname()[1])
    session.accept_outbound(listener.fileno(), port)
    return port


class _Proxies(Variant):
    """Two processes, one in each pod, without capture."""

    def meaningless(self, case: Case) -> str | None:
        return "a row about capturing alone" if is_capturing(case) else None


class Proxy(_Proxies, Ours):
    """Through the engine."""

    def __init__(self) -> None:
        super().__init__("proxy")

    def start(self, session: Session, case: Case) -> None:
        assert isinstance(session, PodSession)
        session.serve()
        super().start(session, case)


class EnvoyPair(_Proxies, Envoy):
    """Two Envoys."""

    def __init__(self) -> None:
        super().__init__(1)

    def start(self, session: Session, case: Case) -> None:
        assert isinstance(session, PodSession)
        session.serve()
        super().start(session, case)


class ZtunnelPair(_Proxies, RustZtunnel):
    """Two ztunnels."""

    def start(self, session: Session, case: Case) -> None:
        assert isinstance(session, PodSession)
        session.serve()
        super().start(session, case)

    def addresses(self, number: int) -> tuple[str, str, str]:
        return CLIENT, SERVER, VIRTUAL_IP

    def linked(self, session: Session, number: int) -> list[str]:
        return []


def capture_variants() -> dict[str, Variant]:
    """All, by name; what is measured first."""
    variants: list[Variant] = [Product(), NoMesh(), Redirect(), Proxy(), EnvoyPair(), ZtunnelPair()]
    return {variant.name: variant for variant in variants}
