"""Under which names and addresses clients reach this control plane."""

import ipaddress
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pyroute2 import IPRoute


def serving_names(host: str, root_namespace: str, domain: str, extra: Sequence[str]) -> list[str]:
    """DNS names and addresses for the serving certificate. A wildcard host stands for all addresses that
    this network namespace has at the moment."""
    service = f"istiod.{root_namespace}.svc"
    names = [service, f"{service}.{domain}", f"istiod.{root_namespace}", "localhost", "127.0.0.1", "::1"]
    names += interface_addresses() if is_wildcard(host) else [host]
    return list(dict.fromkeys([*names, *extra]))


def is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def interface_addresses() -> list[str]:
    """All addresses of the interfaces here, link-local ones left out.

    Asked in a thread of its own: pyroute2 runs an event loop, and the caller's thread may be in one.
    """
    with ThreadPoolExecutor(1) as aside:
        found = aside.submit(_addresses).result()
    return [address for address in found if address and not ipaddress.ip_address(address).is_link_local]


def _addresses() -> list[str | None]:
    with IPRoute() as ip:
        return [message.get_attr("IFA_ADDRESS") for message in ip.get_addr()]
