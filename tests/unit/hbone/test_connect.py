"""Authority and headers of CONNECT."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hbone.connect import (
    MAX_BAGGAGE_VALUE,
    Authority,
    Baggage,
    ConnectError,
    SocketAddress,
    format_forwarded,
    format_traceparent,
    parse_authority,
    parse_baggage,
    parse_forwarded_host,
    parse_headers,
    parse_traceparent,
    request_headers,
    response_headers,
)
from hbone.reasons import Reason

FULL = Baggage(
    cluster_id="Kubernetes",
    namespace="shop",
    workload_type="deployment",
    workload_name="cart",
    service_name="cart",
    revision="v1",
    region="eu",
    zone="eu-1",
)
FULL_TEXT = (
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,"
    "service.name=cart,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1"
)


class TestAuthority:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("10.0.0.1:8080", Authority(IPv4Address("10.0.0.1"), 8080)),
            ("[2001:db8::1]:80", Authority(IPv6Address("2001:db8::1"), 80)),
            ("[::ffff:10.0.0.1]:80", Authority(IPv4Address("10.0.0.1"), 80)),
            ("cart.shop.svc.cluster.local:80", Authority("cart.shop.svc.cluster.local", 80)),
            ("Cart.Shop:65535", Authority("cart.shop", 65535)),
            ("localhost:1", Authority("localhost", 1)),
        ],
    )
    def test_reads_addresses_and_host_names(self, text: str, expected: Authority) -> None:
        assert parse_authority(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            ":",
            ":80",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:99999999999999999999",
            "10.0.0.1:080",
            "10.0.0.1:+80",
            "10.0.0.1: 80",
            "10.0.0.1:8_0",
            "10.0.0.1:0x50",
            "10.0.0.1:80 ",
            " 10.0.0.1:80",
            "10.0.0.1:80\n",
            "10.0.0.1:80\r\nx: y",
            "10.0.0.1:8٠",
            "10.0.0.1:８０",
            "1٠.0.0.1:80",
            "user@10.0.0.1:80",
            "user:pw@host:80",
            "http://10.0.0.1:80",
            "10.0.0.1:80/path",
            "10.0.0.1:80?q",
            "10.0.0.1:80#f",
            "010.0.0.1:80",
            "10.0.0:80",
            "10.0.0.256:80",
            "0x0a.0.0.1:80",
            "167772161:80",
            "::1:80",
            "2001:db8::1:80",
            "[::1",
            "[::1]",
            "[::1]80",
            "[::1]:",
            "::1]:80",
            "[fe80::1%eth0]:80",
            "[fe80::1%25eth0]:80",
            "[10.0.0.1]:80",
            "[]:80",
            "[v1.x]:80",
            "a..b:80",
            ".a:80",
            "a.:80",
            "-a.b:80",
            "a-.b:80",
            "a b:80",
            "a,b:80",
            "*.b:80",
            "bücher.example:80",
            "a\x00b:80",
            "a" * 64 + ".b:80",
            "a." * 200 + "b:80",
            "a" * 65536,
        ],
    )
    def test_refuses_every_malformed_form_as_a_bad_request(self, text: str) -> None:
        with pytest.raises(ConnectError) as caught:
            parse_authority(text)
        assert caught.value.reason is Reason.BAD_REQUEST
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400

    @settings(deadline=None)
    @given(st.ip_addresses(), st.integers(1, 65535))
    @example(ip_address("::ffff:1.2.3.4"), 15008)
    def test_what_is_written_is_read_back(self, ip: IPv4Address | IPv6Address, port: int) -> None:
        address = SocketAddress.of(str(ip), port)
        assert parse_authority(str(address)) == Authority(address.ip, port)
        assert str(parse_authority(str(address))) == str(address)

    @settings(deadline=None)
    @given(st.text(max_size=60) | st.from_regex(r"[\[\]0-9a-f.:%@-]{0,40}", fullmatch=True))
    def test_no_text_raises_anything_but_a_connect_error(self, text: str) -> None:
        try:
            authority = parse_authority(text)
        except ConnectError:
            return
        assert parse_authority(str(authority)) == authority


class TestForwarded:
    def test_the_address_is_quoted_and_the_service_follows(self) -> None:
        assert format_forwarded(SocketAddress.of("10.0.0.1", 4100), "cart.shop.svc") == (
            'for="10.0.0.1:4100";host=cart.shop.svc'
        )
        assert format_forwarded(SocketAddress.of("2001:db8::1", 1)) == 'for="[2001:db8::1]:1"'

    @pytest.mark.parametrize(
        ("value", "host"),
        [
            ("host=a.b", "a.b"),
            ('for="1.2.3.4:5";host=a.b', "a.b"),
            ('for="1.2.3.4:5";host="a.b"', "a.b"),
            ('for="[::1]:5"; Host="a.b" ;proto=http', "a.b"),
            ('for="x\\"y;z";host=a', "a"),
            ("for=1.2.3.4, for=5.6.7.8;host=b", "b"),
            ("host=a;host=b", "a"),
            ("", None),
            ("for=1.2.3.4", None),
            ("host=", None),
            ('host=""', None),
            ("host", None),
            ('host="unclosed', None),
            ("host=ä", None),
            ("proto=http", None),
            ("for=x host=a", None),
            ("host=" + "a" * 2000, None),
        ],
    )
    def test_reads_the_first_host_or_none(self, value: str, host: str | None) -> None:
        assert parse_forwarded_host(value) == host

    @settings(deadline=None)
    @given(st.text(max_size=200))
    def test_no_text_makes_it_fail(self, text: str) -> None:
        parse_forwarded_host(text)


class TestTraceparent:
    def test_writes_a_new_unsampled_trace(self) -> None:
        value = format_traceparent(bytes(15) + b"\x01", b"\xff" * 8)
        assert value == "00-00000000000000000000000000000001-ffffffffffffffff-00"
        assert parse_traceparent(value) == value

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "00-" + "0" * 32 + "-" + "1" * 16 + "-00",
            "00-" + "1" * 32 + "-" + "0" * 16 + "-00",
            "00-" + "G" * 32 + "-" + "1" * 16 + "-00",
            "00-" + "A" * 32 + "-" + "1" * 16 + "-00",
            "01-" + "1" * 32 + "-" + "1" * 16 + "-00",
            "00-" + "1" * 32 + "-" + "1" * 16 + "-001",
        ],
    )
    def test_other_forms_are_left_out(self, value: str) -> None:
        assert parse_traceparent(value) is None


class TestBaggage:
    def test_writes_the_keys_in_istio_order_and_leaves_empty_ones_out(self) -> None:
        assert str(FULL) == FULL_TEXT
        assert str(Baggage()) == ""
        assert str(Baggage(namespace="a", workload_type="job", workload_name="b")) == (
            "k8s.namespace.name=a,k8s.job.name=b"
        )

    def test_reads_what_it_writes(self) -> None:
        assert parse_baggage([FULL_TEXT]) == FULL

    @settings(deadline=None)
    @given(
        st.builds(
            Baggage,
            **dict.fromkeys(
                ("cluster_id", "namespace", "service_name", "revision", "region", "zone", "workload_name"),
                st.text(
                    st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=40
                ),
            ),
            workload_type=st.sampled_from(["deployment", "cronjob", "pod", "job"]),
        )
    )
    def test_any_printable_value_survives_writing_and_reading(self, baggage: Baggage) -> None:
        assert parse_baggage([str(baggage)]) == baggage
        assert str(baggage).isascii()

    def test_several_lines_count_as_one(self) -> None:
        first, second = FULL_TEXT.split(",service.name")
        assert parse_baggage([first, "service.name" + second]) == FULL

    def test_blanks_properties_and_unknown_keys_are_passed_over(self) -> None:
        text = " k8s.namespace.name = shop ;ttl=1 , other=x,,=,service.name"
        assert parse_baggage([text]) == Baggage(namespace="shop")

    def test_the_last_of_equal_keys_wins_and_an_empty_value_unsets(self) -> None:
        assert parse_baggage(["service.name=a,service.name=b"]).service_name == "b"
        assert parse_baggage(["service.name=a,service.name="]).service_name == ""

    @pytest.mark.parametrize("value", ["%", "%4", "%zz", "%ff", "%0a", "a\tb", "x" * (MAX_BAGGAGE_VALUE + 1)])
    def test_a_bad_value_is_left_out_and_the_others_stay(self, value: str) -> None:
        text = f"k8s.cluster.name={value},k8s.namespace.name=shop"
        assert parse_baggage([text]) == Baggage(namespace="shop")

    @pytest.mark.parametrize(
        "text", ["service.name=a," + "x" * 16384, ",".join(f"k{i}=v" for i in range(100)) + ",service.name=a"]
    )
    def test_a_bomb_is_dropped_whole(self, text: str) -> None:
        assert parse_baggage([text]) == Baggage()

    @settings(deadline=None)
    @given(st.lists(st.text(max_size=100), max_size=5))
    def test_no_text_makes_it_fail(self, values: list[str]) -> None:
        parse_baggage(values)


class TestHeaders:
    def test_a_request_carries_baggage_forwarded_and_traceparent_in_this_order(self) -> None:
        trace = format_traceparent(b"\x01" * 16, b"\x02" * 8)
        headers = request_headers(FULL, SocketAddress.of("10.0.0.1", 5), "cart.shop.svc", trace)
        assert headers == (
            ("baggage", FULL_TEXT),
            ("forwarded", 'for="10.0.0.1:5";host=cart.shop.svc'),
            ("traceparent", trace),
        )
        read = parse_headers(headers)
        assert (read.baggage, read.forwarded_host, read.traceparent) == (FULL, "cart.shop.svc", trace)
        assert read.from_network is None

    def test_an_answer_carries_only_the_baggage_of_who_was_reached(self) -> None:
        assert response_headers(FULL) == (("baggage", FULL_TEXT),)
        assert response_headers(Baggage()) == ()

    def test_headers_that_are_absent_or_unknown_say_nothing(self) -> None:
        read = parse_headers([("x-other", "1"), ("forwarded", "nonsense")])
        assert read == type(read)()

    def test_the_network_a_gateway_speaks_for_is_read(self) -> None:
        assert parse_headers([("x-forwarded-network", "east")]).from_network == "east"
