"""Messages, with all that a stranger may send."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.tsigkeyring
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.dns import wire
from ztunnel.dns.wire import Bad, Query

NAMES = st.from_regex(r"[a-zA-Z0-9-]{1,20}(\.[a-zA-Z0-9-]{1,20}){0,6}", fullmatch=True)


def asked(name: str = "web.shop.", kind: str = "A", **how: object) -> dns.message.Message:
    return dns.message.make_query(name, kind, **how)  # type: ignore[arg-type]


def query(name: str = "web.shop.", kind: str = "A", **how: object) -> Query:
    found = wire.parse(asked(name, kind, **how).to_wire())
    assert isinstance(found, Query)
    return found


def bad(data: bytes) -> Bad:
    found = wire.parse(data)
    assert isinstance(found, Bad)
    return found


def rcode(found: Bad) -> str:
    assert found.reply
    return dns.rcode.to_text(dns.message.from_wire(found.reply).rcode())


@settings(deadline=None)
@given(NAMES, st.sampled_from(["A", "AAAA", "TXT", "HTTPS", "SRV"]))
def test_question_is_read(name: str, kind: str) -> None:
    found = query(f"{name}.", kind)
    assert (found.name, found.type) == (name.lower(), kind)
    assert found.version == {"A": 4, "AAAA": 6}.get(kind)


def test_odd_names_are_no_host_names() -> None:
    for name in ("a\\.b.example.", "\\255.example.", ".", "*.example."):
        assert query(name).name is None


@pytest.mark.parametrize(
    ("how", "limit"),
    [({}, 512), ({"use_edns": 0, "payload": 1232}, 1232), ({"use_edns": 0, "payload": 100}, 512)],
)
def test_datagrams_limit_is_what_the_client_can_take(how: dict[str, int], limit: int) -> None:
    assert query(**how).limit == limit


class TestReply:
    def test_addresses_are_told_with_authority_and_edns_is_echoed(self) -> None:
        found = query(use_edns=0, payload=1232, want_dnssec=True)
        answer = dns.message.from_wire(wire.reply(found, [ip_address("10.0.0.1")], None, found.limit))
        assert answer.id == found.message.id
        assert dns.flags.to_text(answer.flags) == "QR AA RD RA"
        assert answer.edns == 0
        assert answer.ednsflags & dns.flags.DO
        assert [str(each) for each in answer.answer] == ["web.shop. 30 IN A 10.0.0.1"]

    def test_plain_question_gets_a_plain_answer(self) -> None:
        assert dns.message.from_wire(wire.reply(query(), [], None, 512)).edns == -1

    def test_alias_comes_before_its_addresses(self) -> None:
        answer = dns.message.from_wire(
            wire.reply(query(kind="AAAA"), [ip_address("fd00::1")], "x.example.com", 512)
        )
        assert [str(each) for each in answer.answer] == [
            "web.shop. 30 IN CNAME x.example.com.",
            "x.example.com. 30 IN AAAA fd00::1",
        ]

    def test_no_address_of_the_kind_is_no_error(self) -> None:
        answer = dns.message.from_wire(wire.reply(query(), [], "x.example.com", 512))
        assert answer.rcode() == dns.rcode.NOERROR
        assert not answer.answer

    def test_name_comes_back_as_it_was_spelled(self) -> None:
        found = query("WeB.Shop.")
        assert found.name == "web.shop"
        assert (
            dns.message.from_wire(wire.reply(found, [], None, 512)).question[0].name.to_text() == "WeB.Shop."
        )

    @settings(deadline=None, max_examples=25)
    @given(st.integers(1, 3000), st.sampled_from([None, 512, 1232, 4096]))
    def test_what_does_not_fit_is_left_out_and_said_so(self, count: int, limit: int | None) -> None:
        addresses = [ip_address(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(count)]
        data = wire.reply(query(use_edns=0), addresses, None, limit)
        answer = dns.message.from_wire(data)
        assert len(data) <= (limit or 65535)
        told = sum(len(each) for each in answer.answer)
        assert told == count or wire.is_truncated(data)
        assert not (told == count and wire.is_truncated(data))


class TestBad:
    def test_short_message_is_dropped(self) -> None:
        assert bad(bytes(11)) == Bad("short")

    def test_answer_is_dropped_lest_two_of_us_talk_for_ever(self) -> None:
        assert bad(dns.message.make_response(asked()).to_wire()) == Bad("response")

    @pytest.mark.parametrize("opcode", [dns.opcode.UPDATE, dns.opcode.NOTIFY, dns.opcode.STATUS])
    def test_other_opcodes_are_not_implemented(self, opcode: dns.opcode.Opcode) -> None:
        message = asked()
        message.set_opcode(opcode)
        found = bad(message.to_wire())
        assert (found.reason, rcode(found)) == ("opcode", "NOTIMP")

    @pytest.mark.parametrize("count", [0, 2])
    def test_other_than_one_question_is_a_format_error(self, count: int) -> None:
        data = asked().to_wire()
        assert rcode(bad(data[:4] + struct.pack("!H", count) + data[6:12] + count * data[12:])) == "FORMERR"

    @pytest.mark.parametrize(
        "pointer", [b"\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\xc0\xff", b"\x01a\xc0\x0c", b"\x40"]
    )
    def test_pointer_loops_and_odd_labels_are_a_format_error(self, pointer: bytes) -> None:
        header = b"\x12\x34\x01\x00\x00\x01" + bytes(6)
        found = bad(header + pointer + b"\x00\x01\x00\x01")
        assert rcode(found) == "FORMERR"
        assert found.reply
        assert found.reply[:2] == b"\x12\x34"

    @pytest.mark.parametrize("size", [12, 13, 20, 25])
    def test_cut_message_is_a_format_error(self, size: int) -> None:
        assert rcode(bad(asked("a-longer-name.example.").to_wire()[:size])) == "FORMERR"

    def test_newer_edns_is_refused_as_such(self) -> None:
        assert rcode(bad(asked(use_edns=1).to_wire())) == "BADVERS"

    def test_zone_transfer_is_not_implemented(self) -> None:
        assert rcode(bad(asked(kind="AXFR").to_wire())) == "NOTIMP"

    @settings(deadline=None, max_examples=300)
    @given(st.binary(max_size=600))
    def test_random_bytes_never_raise(self, data: bytes) -> None:
        found = wire.parse(data)
        if isinstance(found, Bad):
            assert found.reply is None or dns.message.from_wire(found.reply).rcode() != dns.rcode.NOERROR
        else:
            wire.reply(found, [], None, found.limit)
            wire.failure(found)

    @settings(deadline=None, max_examples=300)
    @given(st.data())
    def test_damaged_questions_never_raise(self, data: st.DataObject) -> None:
        raw = bytearray(asked("www.example.com.", "AAAA", use_edns=0).to_wire())
        for _ in range(data.draw(st.integers(1, 6))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        found = wire.parse(bytes(raw))
        if isinstance(found, Query):
            wire.reply(
                found,
                [ip_address("::1" if found.version == 6 else "10.0.0.1")] if found.version else [],
                None,
                512,
            )
            wire.failure(found)
        wire.answers(bytes(raw), query(), 1)


def test_signed_question_is_passed_on_though_we_have_no_key() -> None:
    message = asked()
    message.use_tsig(dns.tsigkeyring.from_text({"key.": "c2VjcmV0"}))
    found = wire.parse(message.to_wire())
    assert isinstance(found, Query)
    assert wire.with_id(found.data, 0x1234)[2:] == message.to_wire()[2:]


class TestAnswers:
    def answer(self, name: str = "web.shop.", kind: str = "A", number: int = 77) -> bytes:
        return wire.with_id(dns.message.make_response(asked(name, kind)).to_wire(), number)

    def test_same_id_and_question_is_the_answer_whatever_the_spelling(self) -> None:
        assert wire.answers(self.answer("WEB.shop."), query(), 77)

    def test_anything_else_is_not(self) -> None:
        for strange in (
            self.answer(number=78),
            self.answer("web.shop.evil."),
            self.answer(kind="AAAA"),
            wire.with_id(asked().to_wire(), 77),
            self.answer()[:11],
            self.answer()[:20],
            b"",
        ):
            assert not wire.answers(strange, query(), 77), strange

    @pytest.mark.parametrize(("code", "counts"), [(1, True), (4, True), (0, False), (3, False)])
    def test_error_may_come_without_the_question(self, code: int, counts: bool) -> None:
        assert wire.answers(struct.pack("!HBB8x", 77, 0x81, code), query(), 77) is counts

    def test_name_error_can_be_turned_into_no_data(self) -> None:
        response = dns.message.make_response(asked())
        response.set_rcode(dns.rcode.NXDOMAIN)
        data = response.to_wire()
        assert wire.is_name_error(data)
        assert wire.rcode_of(data) == "NXDOMAIN"
        assert dns.message.from_wire(wire.without_name_error(data)).rcode() == dns.rcode.NOERROR


def test_clients_cannot_invent_type_names() -> None:
    assert wire.type_name(65) == "HTTPS"
    assert wire.type_name(65400) == "other"
