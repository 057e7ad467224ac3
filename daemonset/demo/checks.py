"""The ten checks. Each takes the running mesh, does what its title says, and returns what it saw."""

import json
import os
import re
import secrets
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import ip_address

from daemonset.demo import policies
from daemonset.demo.mesh import Mesh, NotObserved, matching, wait_for
from daemonset.demo.session import Session
from daemonset.demo.wire import Segment, Tap, begins_like_tls

HBONE_PORT = 15008
WEB = "http://web.shop/"
SPIFFE = "spiffe://cluster.local/ns/shop/sa/"
IN_MESH = ("shop/client", "shop/guest", "shop/web", "shop/echo", "shop/iperf")
FILE = "pydoc_data/topics.py"

# Runs inside the pod: one connection after another until told to stop. Prints counts at the end, and the
# longest time that any connection took.
LOAD = r"""
import http.client, json, signal, sys, time
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
done, failed, longest = 0, [], 0.0
print("started", flush=True)
deadline = time.monotonic() + 40
while going and time.monotonic() < deadline:
    began = time.monotonic()
    try:
        c = http.client.HTTPConnection(sys.argv[1], 80, timeout=5)
        c.request("GET", "/?" + sys.argv[2])
        c.getresponse().read()
        c.close()
        done += 1
    except (OSError, http.client.HTTPException) as error:
        failed.append(str(error))
    longest = max(longest, time.monotonic() - began)
print(json.dumps({"done": done, "failed": len(failed), "longest": longest, "last": failed[-1:]}), flush=True)
"""


class Checks:
    """State that the checks share: where things are, and the sessions that one check opens for the next."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.address = mesh.pod_addresses()

    # -- looking ----------------------------------------------------------------------------------------

    def tap(self) -> Tap:
        """tcpdump on the first node's link to the second."""
        return Tap(self.mesh.netns("n1"), self.mesh.uplink("n1"))

    def between_pods(self, tap: Tap) -> list[Segment]:
        """What the tap saw between addresses of pods (control-plane traffic has others)."""
        pods = {ip_address(a) for addresses in self.address.values() for a in addresses}
        return [s for s in tap.segments() if s.source in pods and s.destination in pods]

    def get(self, pod: str, path: str) -> subprocess.CompletedProcess[str]:
        """One request by curl in a pod."""
        return self.mesh.exec(
            pod, "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", WEB + path
        )

    def must_get(self, pod: str, path: str) -> str:
        """One request that has to reach the web server; its status code."""
        done = self.get(pod, path)
        if done.returncode:
            raise NotObserved(f"curl in {pod} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout

    def refused(self, pod: str) -> subprocess.CompletedProcess[str] | None:
        """One request; what curl said if it did not get through."""
        done = self.get(pod, "")
        return done if done.returncode else None

    def client_address_in_server_log(self, marker: str) -> str:
        """The address from which the web server saw the request that carries the marker."""

        def look() -> str | None:
            log = self.mesh.must("logs", "shop/web")
            return next((line.split(" ")[0] for line in log.splitlines() if marker in line), None)

        return wait_for("the web server logs the request", look).removeprefix("::ffff:")

    def entry(self, node: str, what: str, match: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """The newest access-log entry of a node's agent that matches."""
        return wait_for(
            f"access log of {node}: {what}",
            lambda: next((e for e in reversed(self.mesh.access_log(node)) if match(e)), None),
        )

    def enrolled(self, pods: tuple[str, ...], wanted: bool) -> None:
        """Waits until the pods are enrolled, or are not."""
        wait_for(
            f"pods {'enrolled' if wanted else 'no longer enrolled'}",
            lambda: all((pod in self.mesh.enrolled()) == wanted for pod in pods),
            20,
        )

    # -- checks -----------------------------------------------------------------------------------------

    def clear_before(self) -> str:
        """un-enrolled traffic works, in clear"""
        marker = secrets.token_hex(12)
        with self.tap() as tap:
            code = self.must_get("shop/client", f"?{marker}")
        if marker.encode() not in tap.capture:
            raise NotObserved("the marker should be readable on the link, but was not: is the tap right?")
        return f"HTTP {code}; the request is readable on the link between the nodes"

    def enrol_running_pods(self) -> str:
        """labelling the namespace enrols running pods; an open connection survives, new ones are captured"""
        session = Session(self.mesh, "shop/client", "echo.shop", 7000)
        try:
            before = session.echoed
            began = time.monotonic()
            self.mesh.write("10-namespaces.yaml", policies.ENROLLED)
            self.mesh.apply()
            self.enrolled(IN_MESH, True)
            took = time.monotonic() - began
            if not session.alive():
                raise NotObserved(f"the open connection was cut: {session.ended}")
            self.must_get("shop/client", "")
            new = self.entry("n1", "the new connection", lambda e: e.get("direction") == "outbound")
            return (
                f"{len(IN_MESH)} pods in {took:.1f} s; session on port {session.port} went on "
                f"({before} -> {session.echoed} lines); new one captured to {new['dst.addr']}"
            )
        finally:
            session.close()

    def only_tls_between_nodes(self) -> str:
        """between the nodes only TLS on 15008 is seen; the server still sees the client's address"""
        self.peers_know_tunnels()
        marker = secrets.token_hex(12)
        with self.tap() as tap:
            self.must_get("shop/client", f"?{marker}")
        seen = self.between_pods(tap)
        ports = Counter(s.service_port for s in seen)
        if not seen or set(ports) != {HBONE_PORT}:
            raise NotObserved(f"ports seen between pods: {dict(ports)}")
        if marker.encode() in tap.capture or begins_like_tls(seen):
            raise NotObserved("bytes that are not TLS were seen between the nodes")
        source = self.client_address_in_server_log(marker)
        if source not in self.address["shop/client"]:
            raise NotObserved(f"the server saw {source}, the client is {self.address['shop/client']}")
        return f"{len(seen)} segments, all on 15008, marker not found; server logged {source}"

    def peers_know_tunnels(self) -> None:
        """Waits until a new connection of the client goes through a tunnel (discovery is a push away)."""

        def look() -> bool:
            self.must_get("shop/client", "")
            return any(e.get("dst.addr", "").endswith(f":{HBONE_PORT}") for e in self.mesh.access_log("n1"))

        wait_for("connections go through tunnels", look)

    def identities_in_logs(self) -> str:
        """both access logs name the SPIFFE identities"""
        expected = {"src.identity": SPIFFE + "client", "dst.identity": SPIFFE + "web"}
        for node, direction in (("n1", "outbound"), ("n2", "inbound")):
            wanted = {**expected, "direction": direction}
            self.entry(node, f"{direction} with both identities", partial(_has, wanted))
        return f"{expected['src.identity']} -> {expected['dst.identity']} on n1 (outbound) and n2 (inbound)"

    def strict_refuses_plaintext(self) -> str:
        """STRICT refuses an un-enrolled client, with the reason"""
        if self.must_get("outside/stranger", "") != "200":
            raise NotObserved("the stranger should get through before STRICT")
        self.mesh.write("50-strict.yaml", policies.STRICT)
        self.mesh.apply()
        refused = wait_for("STRICT takes effect", lambda: self.refused("outside/stranger"))
        entry = self.entry("n2", "the refusal", lambda e: "istio_converted_static_strict" in e["line"])
        self.must_get("shop/client", "")
        return f"{refused.stderr.strip()}; n2 logs reason={entry.get('reason')} policy={entry.get('policy')}"

    def allow_by_principal(self) -> str:
        """an ALLOW policy by principal lets one client through and refuses another; explain says why"""
        self.must_get("shop/guest", "")
        self.mesh.write("60-allow-web.yaml", policies.allow("web-callers", "web", "client"))
        self.mesh.apply()
        refused = wait_for("guest is refused", lambda: self.refused("shop/guest"))
        code = self.must_get("shop/client", "")
        told = self.mesh.ctl("explain", "--from", "shop/guest", "--to", "web.shop:80")
        if "shop/web-callers" not in told.stdout or told.returncode == 0:
            raise NotObserved(f"explain should name shop/web-callers: {told.stdout}{told.stderr}")
        allowed = self.mesh.ctl("explain", "--from", "shop/client", "--to", "web.shop:80")
        if allowed.returncode:
            raise NotObserved(f"explain should allow the client: {allowed.stdout}{allowed.stderr}")
        verdict = next((line for line in told.stdout.splitlines() if "shop/web-callers" in line), "").strip()
        return f"client HTTP {code}, guest curl exit {refused.returncode}; explain: {verdict}"

    def policy_cuts_open_connection(self) -> str:
        """a policy change cuts an open connection within a second, others live"""
        self.mesh.write("61-allow-echo.yaml", policies.allow("echo-callers", "echo", "client", "guest"))
        self.mesh.apply()
        kept = cut = None
        try:
            kept = Session(self.mesh, "shop/client", "echo.shop", 7000)
            cut = Session(self.mesh, "shop/guest", "echo.shop", 7000)
            self.mesh.write("61-allow-echo.yaml", policies.allow("echo-callers", "echo", "client"))
            self.mesh.apply()
            applied = time.monotonic()
            ended = wait_for("the guest's session is cut", lambda: cut.ended, 5)
            took = ended[0] - applied
            if took > 1.0:
                raise NotObserved(f"cut only {took:.2f} s after the change was applied")
            if not kept.alive():
                raise NotObserved(f"the client's session was cut as well: {kept.ended}")
            entry = self.entry("n2", "the cut", lambda e: e.get("reason") == "policy_changed")
            when = f"{took:.2f} s after" if took > 0 else "before"
            return f"guest cut {when} `up` returned ({entry['reason']}); client's session goes on"
        finally:
            for session in (kept, cut):
                if session:
                    session.close()

    def metrics_are_exact(self) -> str:
        """metrics count exactly the connections and bytes of a known transfer"""
        count, before = 3, self.counters()
        sizes = Counter[str]()
        form = r"%{size_request} %{size_header} %{size_download}"
        for _ in range(count):
            done = self.mesh.exec("shop/client", "curl", "-sSf", "-o", "/dev/null", "-w", form, WEB + FILE)
            if done.returncode:
                raise NotObserved(f"curl failed: {done.stderr}")
            request, header, body = (int(n) for n in done.stdout.split())
            sizes.update(up=request, down=header + body)
        expected = {"opened": count, "closed": count, "received": sizes["up"], "sent": sizes["down"]}

        def look() -> dict[str, dict[str, float]] | None:
            now = self.counters()
            delta = {node: {k: now[node][k] - before[node][k] for k in expected} for node in now}
            self.last = delta
            return delta if all(d == expected for d in delta.values()) else None

        try:
            wait_for("counters", look, 5)
        except NotObserved:
            raise NotObserved(f"expected {expected}, counted {self.last}") from None
        return f"{count} connections, {sizes['up']} bytes up, {sizes['down']} down, on n1 (source) and n2 (destination)"

    def counters(self) -> dict[str, dict[str, float]]:
        """The four traffic counters of client -> web, per node and reporter."""
        found = {}
        for node, reporter in (("n1", "source"), ("n2", "destination")):
            samples = self.mesh.metrics(self.mesh.netns(node))
            labels = {
                "reporter": reporter,
                "source_principal": SPIFFE + "client",
                "destination_principal": SPIFFE + "web",
                "connection_security_policy": "mutual_tls",
            }
            found[node] = {
                short: matching(samples.get(f"istio_tcp_{name}_total", {}), **labels)
                for short, name in (
                    ("opened", "connections_opened"),
                    ("closed", "connections_closed"),
                    ("received", "received_bytes"),
                    ("sent", "sent_bytes"),
                )
            }
        return found

    def agent_killed(self) -> str:
        """killing the agent under load: it comes back, new connections succeed, none goes out in clear"""
        marker = secrets.token_hex(12)
        pid = self.mesh.agent_pid("n1")
        with self.tap() as tap:
            load = self.mesh.spawn("shop/client", "python3", "-u", "-c", LOAD, "web.shop", marker)
            assert load.stdout is not None
            load.stdout.readline()
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            wait_for("a new agent", lambda: self.mesh.agent_pid("n1") not in (0, pid), 20)
            wait_for(
                "a connection through the new agent",
                lambda: not self.get("shop/client", f"?{marker}").returncode,
                20,
            )
            back = time.monotonic() - began
            time.sleep(0.5)
            load.terminate()
            result = self._load_result(load)
        if not result["done"]:
            raise NotObserved(f"no connection of the load succeeded: {result}")
        if marker.encode() in tap.capture:
            raise NotObserved("the marker was readable on the link while the agent was away")
        ports = Counter(s.service_port for s in self.between_pods(tap))
        if set(ports) != {HBONE_PORT}:
            raise NotObserved(f"ports seen between pods: {dict(ports)}")
        return (
            f"connection through the new agent after {back:.1f} s; load: {result['done']} done, "
            f"{result['failed']} failed, longest {result['longest']:.2f} s; nothing in clear"
        )

    @staticmethod
    def _load_result(load: "subprocess.Popen[str]") -> dict[str, float]:
        try:
            output = load.communicate(timeout=20)[0]
        except subprocess.TimeoutExpired:
            load.kill()
            raise NotObserved("the load did not stop") from None
        found = re.search(r"\{.*\}", output)
        if not found:
            raise NotObserved(f"the load reported nothing: {output[-200:]}")
        result: dict[str, float] = json.loads(found.group())
        return result

    def unlabel_restores(self) -> str:
        """un-labelling restores plain traffic; a session opened while enrolled goes on"""
        for file in ("50-strict.yaml", "60-allow-web.yaml", "61-allow-echo.yaml"):
            self.mesh.write(file, None)
        self.mesh.apply()
        session = Session(self.mesh, "shop/client", "echo.shop", 7000)
        try:
            return self._unlabel(session)
        finally:
            session.close()

    def _unlabel(self, session: Session) -> str:
        self.mesh.write("10-namespaces.yaml", policies.NOT_ENROLLED)
        self.mesh.apply()
        self.enrolled(IN_MESH, False)

        def look() -> str | None:
            marker = secrets.token_hex(12)
            with self.tap() as tap:
                code = self.must_get("shop/client", f"?{marker}")
            return code if marker.encode() in tap.capture else None

        code = wait_for("traffic is plain again", look, 10)
        before = session.echoed
        if not session.alive():
            raise NotObserved(f"the open session was cut: {session.ended}")
        session.close()

        def restored() -> bool:
            return "fwmark" not in self.mesh.in_pod_netns("shop/client", "ip", "rule", "show")

        wait_for("no rules are left in the pod once the session has ended", restored)
        went_on = f"session on port {session.port} went on ({before} -> {session.echoed} lines)"
        return f"HTTP {code}, readable on the link again; {went_on}; no rules left in the pods"


def _has(wanted: Mapping[str, str], entry: Mapping[str, str]) -> bool:
    return wanted.items() <= entry.items()


ORDER: tuple[Callable[[Checks], str], ...] = (
    Checks.clear_before,
    Checks.enrol_running_pods,
    Checks.only_tls_between_nodes,
    Checks.identities_in_logs,
    Checks.strict_refuses_plaintext,
    Checks.allow_by_principal,
    Checks.policy_cuts_open_connection,
    Checks.metrics_are_exact,
    Checks.agent_killed,
    Checks.unlabel_restores,
)
