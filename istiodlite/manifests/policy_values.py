"""What the values of an AuthorizationPolicy may look like (Istio's validation rules)."""

import re

from istiodlite.manifests.fields import Field, shown

MAX_SERVICE_ACCOUNTS = 16
MAX_SERVICE_ACCOUNT_LENGTH = 320

_HEADER_KEY = re.compile(r"request\.headers\[([^\[\]]+)\]\Z")
_CLAIM_KEY = re.compile(r"request\.auth\.claims(\[[^\[\]]+\])+\Z")
_FILTER_KEY = re.compile(r"experimental\.envoy\.filters\.[^\[\]]+\[[^\[\]]+\]\Z")
_PLAIN_KEYS = frozenset(
    {
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "destination.ip",
        "destination.port",
        "connection.sni",
    }
)
_IP_KEYS = frozenset({"source.ip", "remote.ip", "destination.ip"})
_SEGMENT = re.compile(r"[A-Za-z0-9\-._~!$&'()+,;=:@%]*\Z")
CUSTOM_REFUSED_KEYS = ("source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal")


def check_condition_key(field: Field) -> str:
    key = field.text()
    known = key in _PLAIN_KEYS or any(p.match(key) for p in (_HEADER_KEY, _CLAIM_KEY, _FILTER_KEY))
    if not known:
        field.fail(f"{shown(key)} is not a known condition; see the when keys of AuthorizationPolicy")
    return key


def check_condition_values(key: str, values: Field) -> tuple[str, ...]:
    """The values for a key, each checked as the key demands."""
    texts = values.texts()
    for text, item in zip(texts, values.items(), strict=True):
        if key in _IP_KEYS:
            item.ip_or_cidr()
        elif key == "destination.port":
            check_port(text, item)
        elif key == "source.serviceAccount":
            check_service_account(text, item)
    return texts


def check_port(text: str, field: Field) -> None:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 65535:
        field.fail(f"{shown(text)} is not a port number from 0 to 65535")


def check_ports(field: Field) -> tuple[str, ...]:
    """A list of port numbers, which the API wants as texts; plain numbers are understood too."""
    out = []
    for item in field.items():
        text = str(item.integer(0, 65535)) if isinstance(item.value, int) else item.text()
        check_port(text, item)
        out.append(text)
    return tuple(out)


def check_blocks(field: Field) -> tuple[str, ...]:
    return tuple(item.ip_or_cidr() for item in field.items())


def check_service_account(text: str, field: Field) -> None:
    if "*" in text:
        field.fail(f"{shown(text)}: wildcards are not allowed; list each service account")
    if len(text) > MAX_SERVICE_ACCOUNT_LENGTH:
        field.fail(f"is longer than {MAX_SERVICE_ACCOUNT_LENGTH} characters; shorten it")
    if text.count("/") > 1 or not all(text.split("/")):
        field.fail(f'{shown(text)} is not "name" or "namespace/name"')


def check_service_accounts(field: Field) -> tuple[str, ...]:
    texts = field.texts()
    if len(texts) > MAX_SERVICE_ACCOUNTS:
        field.fail(f"lists more than {MAX_SERVICE_ACCOUNTS}; split the rule")
    for text, item in zip(texts, field.items(), strict=True):
        check_service_account(text, item)
    return texts


def check_trust_domains(field: Field) -> tuple[str, ...]:
    texts = field.texts()
    for text, item in zip(texts, field.items(), strict=True):
        if "/" in text:
            item.fail(f'{shown(text)} must not contain "/"')
        if "*" in text[1:-1] or (text.count("*") > 1):
            item.fail(f"{shown(text)}: a wildcard may only be the first or the last character")
    return texts


def check_paths(field: Field) -> tuple[str, ...]:
    texts = field.texts()
    for text, item in zip(texts, field.items(), strict=True):
        if "{" in text or "}" in text:
            _check_template(text, item)
    return texts


def _check_template(text: str, field: Field) -> None:
    """`{*}` is one segment, `{**}` the rest and the last operator."""
    if "*" in text.replace("{*}", "").replace("{**}", ""):
        field.fail(f"{shown(text)} mixes a template with a plain wildcard; use one of the two")
    segments = text.split("/")
    for index, segment in enumerate(segments):
        if segment == "{*}":
            continue
        if segment == "{**}":
            if any("{" in later for later in segments[index + 1 :]):
                field.fail(f"{shown(text)}: {{**}} must be the last operator")
            continue
        if _SEGMENT.match(segment) is None:
            field.fail(f"{shown(text)} is not a valid path template; use {{*}} and {{**}} as whole segments")
