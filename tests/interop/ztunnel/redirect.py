"""Steering a pod's connections to a ztunnel that brings no capture of its own, as Istio's CNI does it.

Rules of nftables inside the pod's network namespace: everything outbound to port 15001, everything inbound but
HBONE to 15006, except what the proxy itself sends (mark 0x539). Replies of connections that carry the client's
address come back through table 100. The node's own addresses are let through: probes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

_MARKED, _REPLY = "mark and 0xfff == 0x539", "mark and 0xfff == 0x111"

_RULES = """
table inet ambient_interop {{
  chain prerouting_mark {{
    type filter hook prerouting priority mangle;
    meta {marked} ct mark set 0x111
  }}
  chain prerouting_nat {{
    type nat hook prerouting priority dstnat;
    {probes}
    meta {marked} accept
    fib daddr type local ip daddr != 127.0.0.0/8 tcp dport != 15008 redirect to :15006
    fib daddr type local ip6 daddr != ::1 tcp dport != 15008 redirect to :15006
  }}
  chain output_mark {{
    type route hook output priority mangle;
    ct {reply} meta mark set ct mark
  }}
  chain output_nat {{
    type nat hook output priority -100;
    meta {reply} accept
    meta {marked} accept
    oifname "lo" accept
    ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15001
    ip6 daddr != ::1 meta l4proto tcp redirect to :15001
  }}
}}
"""


def install(netns: str, node_addresses: Sequence[str]) -> None:
    """Steer; `node_addresses` are left alone as clients."""
    probes = "\n    ".join(f"{'ip6' if ':' in a else 'ip'} saddr {a} accept" for a in node_addresses)
    _inside(netns, "nft", "-f", "-", text=_RULES.format(probes=probes, marked=_MARKED, reply=_REPLY))
    for family in ("-4", "-6"):
        mark = ("fwmark", "0x111/0xfff", "lookup", "100", "pref", "32764")
        _inside(netns, "ip", family, "rule", "add", *mark)
        _inside(netns, "ip", family, "route", "add", "local", "default", "dev", "lo", "table", "100")


def _inside(netns: str, *command: str, text: str = "") -> None:
    words = ["nsenter", f"--net=/run/netns/{netns}", *command]
    done = subprocess.run(words, input=text, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} in {netns}: {done.stderr.strip()}")
