"""Settings: Istio's names and defaults, and errors of one line that name the variable."""

from __future__ import annotations

import pytest

from ztunnel.config import SETTINGS, Config, ConfigError, Endpoint, describe, load


def test_node_name_is_all_that_must_be_set() -> None:
    config = load({"NODE_NAME": "n1"})
    assert config.xds_address == Endpoint("istiod.istio-system.svc", 15012)
    assert config.ca_address == config.xds_address
    assert (config.admin_port, config.stats_port, config.readiness_port) == (15000, 15020, 15021)
    assert config.secret_ttl == 86400
    assert config.orig_src is None


def test_a_missing_node_name_is_one_line_that_says_what_it_is() -> None:
    with pytest.raises(ConfigError) as raised:
        load({})
    assert str(raised.value) == "NODE_NAME must be set: name of this node; pods of other nodes are not ours"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("XDS_ON_DEMAND", "maybe"),
        ("ADMIN_PORT", "65536"),
        ("ADMIN_PORT", "+1"),
        ("ADMIN_PORT", "１５０００"),
        ("SECRET_TTL", "a day"),
        ("SECRET_TTL", "1h5"),
        ("XDS_ADDRESS", "ftp://somewhere"),
        ("XDS_ADDRESS", "https://:1"),
        ("XDS_ADDRESS", "https://istiod:99999"),
        ("LOG_FORMAT", "xml"),
        ("AMBIENT_EXEMPT_INBOUND_PORTS", "22,http"),
        ("AMBIENT_ENROL", "cni"),
        ("AMBIENT_POD_STATUS", "maybe"),
        ("ISTIO_METAJSON_LABELS", "{"),
    ],
)
def test_a_bad_value_is_one_line_naming_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load({"NODE_NAME": "n1", name: value})
    assert str(raised.value).startswith(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("86400s", 86400), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("90", 90)]
)
def test_durations_are_read_as_istio_writes_them(text: str, seconds: float) -> None:
    assert load({"NODE_NAME": "n1", "SECRET_TTL": text}).secret_ttl == seconds


@pytest.mark.parametrize(
    ("environ", "deadline"),
    [
        ({}, 5.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "8"}, 7.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1.0),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "2s"}, 2.0),
    ],
)
def test_the_drain_deadline_leaves_room_before_the_pod_is_killed(
    environ: dict[str, str], deadline: float
) -> None:
    assert load({"NODE_NAME": "n1", **environ}).drain_deadline == deadline


def test_istios_other_name_for_the_cluster_counts_unless_the_first_is_set() -> None:
    assert load({"NODE_NAME": "n", "ISTIO_META_CLUSTER_ID": "west"}).cluster_id == "west"
    assert load({"NODE_NAME": "n", "CLUSTER_ID": "a", "ISTIO_META_CLUSTER_ID": "b"}).cluster_id == "a"


def test_headers_and_metadata_pass_through() -> None:
    config = load(
        {"NODE_NAME": "n", "XDS_HEADER_X-Id": "7", "ISTIO_META_DNS": "on", "ISTIO_METAJSON_L": '{"a": 1}'}
    )
    assert config.xds_headers == (("x-id", "7"),)
    assert config.proxy_metadata == {"DNS": "on", "L": {"a": 1}}


def test_an_empty_address_switches_the_control_plane_off() -> None:
    config = load({"NODE_NAME": "n", "XDS_ADDRESS": "", "CA_ADDRESS": "https://[::1]:15012"})
    assert config.xds_address is None
    assert config.ca_address is not None
    assert config.ca_address.target == "[::1]:15012"


@pytest.mark.parametrize(
    ("environ", "asked", "captured"),
    [
        ({}, None, True),
        ({}, False, False),
        ({"ISTIO_META_DNS_CAPTURE": "false"}, True, True),
        ({"XDS_ON_DEMAND": "true"}, None, False),
        ({"XDS_ON_DEMAND": "true"}, True, False),
    ],
)
def test_a_pods_own_choice_about_names_counts_but_not_on_demand(
    environ: dict[str, str], asked: bool | None, captured: bool
) -> None:
    assert load({"NODE_NAME": "n", **environ}).captures_dns_of(asked) is captured


def test_the_node_id_is_that_of_an_istio_ztunnel() -> None:
    config = load(
        {"NODE_NAME": "n", "POD_NAME": "z-1", "POD_NAMESPACE": "istio-system", "INSTANCE_IP": "10.0.0.1"}
    )
    assert config.node_id == "ztunnel~10.0.0.1~z-1.istio-system~istio-system.svc.cluster.local"


def test_help_lists_every_setting_with_its_meaning() -> None:
    text = describe()
    assert all(row.env in text and row.doc in text for row in SETTINGS)


def test_a_literal_token_is_not_shown() -> None:
    token = "eyJhbGciOi" * 20
    config: Config = load({"NODE_NAME": "n", "AUTH_TOKEN": token})
    assert token not in str(config.shown())
