"""DNS messages: read, answered, matched. Pure.

Sources: RFC 1035 (messages), RFC 2308 (no data), RFC 6891 (EDNS). Messages that are passed on keep every byte
but their id, so that what is not understood here (record types, options, signatures) arrives as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from ztunnel.state.model import IPAddress

__all__ = [
    "TTL",
    "Bad",
    "Query",
    "answers",
    "failure",
    "is_name_error",
    "is_truncated",
    "parse",
    "rcode_of",
    "reply",
    "type_name",
    "with_id",
    "without_name_error",
]

TTL: Final = 30
"""Seconds for which what the mesh knows may be kept; as in Istio's ztunnel."""

_HEADER: Final = 12
_PLAIN_LIMIT: Final = 512
_OUR_PAYLOAD: Final = 4096
_RESPONSE, _TRUNCATED = 0x80, 0x02
_TRANSFERS: Final = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)
_WITHOUT_QUESTION: Final = (dns.rcode.FORMERR, dns.rcode.NOTIMP)


@dataclass(frozen=True, slots=True)
class Query:
    """A question that can be answered. `name`: lower case, without the final dot; None if it is no host name.
    `version`: the IP version of the addresses asked for, None for other types. `limit`: of a datagram's answer.
    """

    data: bytes
    message: dns.message.Message
    name: str | None
    version: int | None
    type: str
    limit: int


@dataclass(frozen=True, slots=True)
class Bad:
    """What cannot be answered; `reply` is None where nothing is to be said."""

    reason: str
    reply: bytes | None = None


def parse(data: bytes) -> Query | Bad:
    """Read what a client sent. Never raises, whatever it was."""
    if len(data) < _HEADER:
        return Bad("short")
    if data[2] & _RESPONSE:
        return Bad("response")  # no answer to an answer: two of us would never stop
    if (data[2] >> 3) & 0xF != dns.opcode.QUERY:
        return Bad("opcode", _header(data, dns.rcode.NOTIMP))
    message = _read(data)
    if message is None or len(message.question) != 1:
        return Bad("malformed", _header(data, dns.rcode.FORMERR))
    question = message.question[0]
    if message.edns > 0:
        return Bad("edns_version", _response(message, dns.rcode.BADVERS).to_wire())
    if question.rdtype in _TRANSFERS:
        return Bad("transfer", _response(message, dns.rcode.NOTIMP).to_wire())
    limit = max(_PLAIN_LIMIT, message.payload) if message.edns >= 0 else _PLAIN_LIMIT
    version = _VERSIONS.get(question.rdtype) if question.rdclass == dns.rdataclass.IN else None
    return Query(data, message, _host(question.name), version, type_name(question.rdtype), limit)


def reply(
    query: Query, addresses: Sequence[IPAddress], canonical: str | None, limit: int | None = None
) -> bytes:
    """Our own answer: authoritative, `canonical` behind a CNAME. No addresses: the name exists, but has none of
    that kind. What does not fit into `limit` (None: TCP) is left out, and the answer says so."""
    response = _response(query.message, dns.rcode.NOERROR)
    response.flags |= dns.flags.AA
    question = query.message.question[0]
    owner = question.name
    if canonical is not None and addresses:
        target = dns.name.from_text(f"{canonical}.")
        response.answer.append(dns.rrset.from_text(owner, TTL, "IN", "CNAME", target.to_text()))
        owner = target
    if addresses:
        kind = dns.rdatatype.to_text(question.rdtype)
        response.answer.append(
            dns.rrset.from_text_list(owner, TTL, "IN", kind, [str(ip) for ip in addresses])
        )
    return response.to_wire(max_size=limit or 65535, prefer_truncation=True)


def failure(query: Query, rcode: dns.rcode.Rcode = dns.rcode.SERVFAIL) -> bytes:
    """An answer that says no more than this."""
    return _response(query.message, rcode).to_wire()


def with_id(data: bytes, number: int) -> bytes:
    """The same message under another id."""
    return number.to_bytes(2, "big") + data[2:]


def answers(data: bytes, sent: Query, number: int) -> bool:
    """Whether a message is the answer to what was sent under this id: same id, same question."""
    if len(data) < _HEADER or data[:2] != number.to_bytes(2, "big") or not data[2] & _RESPONSE:
        return False
    try:
        message = dns.message.from_wire(data, question_only=True)
    except Exception:
        return False
    if not message.question:
        return dns.rcode.Rcode(data[3] & 0xF) in _WITHOUT_QUESTION
    theirs, ours = message.question, sent.message.question[0]
    return (
        len(theirs) == 1
        and theirs[0].name == ours.name
        and (theirs[0].rdtype, theirs[0].rdclass) == (ours.rdtype, ours.rdclass)
    )


def is_truncated(data: bytes) -> bool:
    """Whether something was left out of an answer."""
    return bool(data[2] & _TRUNCATED)


def is_name_error(data: bytes) -> bool:
    """Whether an answer says that there is no such name."""
    return data[3] & 0xF == dns.rcode.NXDOMAIN


def without_name_error(data: bytes) -> bytes:
    """The same answer, saying that the name exists and has nothing of the kind."""
    return data[:3] + bytes([data[3] & 0xF0]) + data[4:]


def rcode_of(data: bytes) -> str:
    """As in the log: NOERROR, NXDOMAIN, ..."""
    return dns.rcode.to_text(dns.rcode.Rcode(data[3] & 0xF))


def type_name(kind: int) -> str:
    """A, AAAA, ...; "other" for what has no name: clients must not be able to invent labels."""
    text = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(kind))
    return "other" if text.startswith("TYPE") else text


_VERSIONS: Final = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}


def _read(data: bytes) -> dns.message.Message | None:
    try:
        try:
            return dns.message.from_wire(data)
        except dns.message.UnknownTSIGKey:  # a signature for the name server, not for us
            return dns.message.from_wire(data, question_only=True)
    except Exception:  # whatever a stranger's bytes do to the library, they are only malformed
        return None


def _record(ip: IPAddress) -> dns.rdata.Rdata:
    """Made from bytes: reading text takes ten times as long, and a headless service may have thousands."""
    kind = dns.rdatatype.A if ip.version == 4 else dns.rdatatype.AAAA
    return dns.rdata.from_wire(dns.rdataclass.IN, kind, ip.packed, 0, len(ip.packed))


def _header(data: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A header alone, in answer to what could not be read."""
    return data[:2] + bytes([_RESPONSE | data[2] & 0x79, rcode]) + bytes(8)


def _response(message: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
    response = dns.message.make_response(message, recursion_available=True, our_payload=_OUR_PAYLOAD)
    if message.edns >= 0:
        response.use_edns(0, ednsflags=message.ednsflags & dns.flags.DO, payload=_OUR_PAYLOAD)
    response.set_rcode(rcode)
    return response


def _host(name: dns.name.Name) -> str | None:
    labels = name.labels[:-1] if name.is_absolute() else name.labels
    try:
        texts = [label.decode("ascii").lower() for label in labels]
    except UnicodeDecodeError:
        return None
    odd = any("." in text or "*" in text for text in texts)
    return None if odd or not texts else ".".join(texts)
