"""What happens to the connections that come to an enrolled pod."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ebpf.capture import Capture, EnrolledPod
from ebpf.marks import ONWARD_MARK
from ebpf.variants import Variant
from tests.netns.capture import apps
from tests.netns.capture.apps import MPTCP, Answer, Dial
from tests.netns.capture.lab import NODE_V4, NODE_V6, SECOND_NODE_V4, App, Lab, both_variants

pytestmark = [pytest.mark.root, both_variants]

versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def agent(lab: Lab, capture: Capture, enrolled: EnrolledPod) -> App:
    """A process in the pod that counts as the agent."""
    started = lab.app(lab.pods[0], lab.agent_cgroup)
    capture.exempt_agent(started.pid)
    return started


def assert_steered(answer: Answer, lab: Lab, to: tuple[str, int], tag: str = "inbound") -> None:
    version = 6 if ":" in to[0] else 4
    assert answer.tag == tag
    assert answer.server_local == answer.client_peer == to
    assert answer.server_peer == answer.client_local
    assert answer.server_peer[0] == lab.pods[1].own(version)


@versions
@pytest.mark.parametrize("port", [8080, 9001, 9003, 9999, 15001, 15006])
def test_every_port_is_captured(lab: Lab, neighbour: App, version: int, port: int) -> None:
    """Open on any address, open on just this address, MPTCP listener, closed, the listeners' own."""
    to = (lab.pods[0].own(version), port)
    assert_steered(neighbour.call(apps.exchange, Dial(to)), lab, to)


@versions
def test_mptcp_client_is_captured(lab: Lab, neighbour: App, version: int) -> None:
    to = (lab.pods[0].own(version), 8080)
    assert_steered(neighbour.call(apps.exchange, Dial(to, protocol=MPTCP)), lab, to)


@versions
def test_fast_open_client_is_captured(lab: Lab, neighbour: App, version: int) -> None:
    to = (lab.pods[0].own(version), 8080)
    assert_steered(neighbour.call(apps.exchange, Dial(to, "fastopen-sendto")), lab, to)


@versions
def test_hbone_port_goes_to_the_hbone_listener(lab: Lab, neighbour: App, version: int) -> None:
    to = (lab.pods[0].own(version), 15008)
    assert_steered(neighbour.call(apps.exchange, Dial(to)), lab, to, "hbone")


@versions
def test_hbone_from_a_node_address_goes_to_the_hbone_listener(lab: Lab, host: App, version: int) -> None:
    assert host.call(apps.exchange, Dial((lab.pods[0].own(version), 15008))).tag == "hbone"


@versions
def test_probe_from_a_node_address_reaches_the_application(lab: Lab, host: App, version: int) -> None:
    answer = host.call(apps.exchange, Dial((lab.pods[0].own(version), 8080)))
    assert answer.tag == f"app-{lab.pods[0].name}"
    assert answer.server_peer[0] == (NODE_V4 if version == 4 else NODE_V6)


def test_every_node_address_counts_as_the_node(lab: Lab, capture: Capture, host: App) -> None:
    probe = Dial((lab.pods[0].v4, 8080), source=(SECOND_NODE_V4, 0))
    assert host.call(apps.exchange, probe).tag == "inbound"
    network = lab.pods[0].network()
    capture.enrol(lab.pods[0].network(node_addresses=(*network.node_addresses, ip_address(SECOND_NODE_V4))))
    assert host.call(apps.exchange, probe).tag == f"app-{lab.pods[0].name}"
    capture.enrol(network)
    assert host.call(apps.exchange, probe).tag == "inbound"


@versions
def test_probe_of_a_closed_port_is_refused(lab: Lab, host: App, version: int) -> None:
    assert host.call(apps.outcome, Dial((lab.pods[0].own(version), 9999))) == "ECONNREFUSED"


@versions
def test_exempt_inbound_port_reaches_the_application(
    lab: Lab, capture: Capture, neighbour: App, version: int
) -> None:
    dial = Dial((lab.pods[0].own(version), 8080))
    capture.enrol(lab.pods[0].network(exempt_inbound_ports=frozenset({8080})))
    assert neighbour.call(apps.exchange, dial).tag == f"app-{lab.pods[0].name}"
    assert neighbour.call(apps.exchange, Dial((lab.pods[0].own(version), 9001))).tag == "inbound"
    capture.enrol(lab.pods[0].network())
    assert neighbour.call(apps.exchange, dial).tag == "inbound"


@versions
def test_bypass_inbound_leaves_all_but_hbone_to_the_application(
    lab: Lab, variant: Variant, capture: Capture, app: App, neighbour: App, version: int
) -> None:
    """C cannot: it goes on capturing, and says so in the log."""
    own = lab.pods[0].own(version)
    capture.enrol(lab.pods[0].network(bypass_inbound=True))
    if variant is Variant.B:
        assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == f"app-{lab.pods[0].name}"
        assert neighbour.call(apps.outcome, Dial((own, 9999))) == "ECONNREFUSED"
    else:
        assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == "inbound"
    assert neighbour.call(apps.exchange, Dial((own, 15008))).tag == "hbone"
    assert app.call(apps.exchange, Dial((lab.pods[1].own(version), 8080))).tag == "outbound"
    capture.enrol(lab.pods[0].network())
    assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == "inbound"


@versions
def test_agents_onward_connection_reaches_the_application(lab: Lab, agent: App, version: int) -> None:
    answer = agent.call(apps.exchange, Dial((lab.pods[0].own(version), 8080)))
    assert answer.tag == f"app-{lab.pods[0].name}"


@versions
def test_agents_onward_connection_under_the_clients_address(lab: Lab, agent: App, version: int) -> None:
    own, client = lab.pods[0].own(version), lab.pods[1].own(version)
    onward = Dial((own, 8080), source=(client, 0), device="lo", mark=ONWARD_MARK, onward=True)
    answer = agent.call(apps.exchange, onward)
    assert answer.tag == f"app-{lab.pods[0].name}"
    assert answer.server_peer == answer.client_local
    assert answer.server_peer[0] == client
    specific = Dial((own, 9001), source=(client, 0), device="lo", mark=ONWARD_MARK, onward=True)
    assert agent.call(apps.exchange, specific).tag == "specific"


@versions
def test_agents_onward_connection_under_the_clients_address_to_a_closed_port_is_refused(
    lab: Lab, agent: App, version: int
) -> None:
    own, client = lab.pods[0].own(version), lab.pods[1].own(version)
    onward = Dial((own, 9998), source=(client, 0), device="lo", mark=ONWARD_MARK, onward=True)
    assert agent.call(apps.outcome, onward) == "ECONNREFUSED"


@versions
def test_pod_that_is_not_enrolled_gets_its_connections_itself(
    lab: Lab, app: App, host: App, version: int
) -> None:
    assert host.call(apps.exchange, Dial((lab.pods[1].own(version), 8080))).tag == f"app-{lab.pods[1].name}"


def test_two_enrolled_pods_have_their_own_listeners(lab: Lab, capture: Capture, neighbour: App) -> None:
    third = capture.enrol(lab.pods[2].network())
    lab.servers.serve(third.inbound, "third-inbound")
    try:
        for pod, tag in ((lab.pods[2], "third-inbound"), (lab.pods[0], "inbound")):
            for address in (pod.v4, pod.v6):
                assert neighbour.call(apps.exchange, Dial((address, 8080))).tag == tag
    finally:
        lab.servers.forget("third-inbound")
        capture.withdraw(third)
    answer = neighbour.call(apps.exchange, Dial((lab.pods[2].v4, 8080)))
    assert answer.tag == f"app-{lab.pods[2].name}"
