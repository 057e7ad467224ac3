"""The node's own network, as the short cut past it is tested against."""

from __future__ import annotations

import json
import os

from ebpf import netns
from ebpf.redirect import Redirect
from tests.netns.capture.lab import Lab, sh
from tests.netns.direct.bench import PORT

_TABLE = "ambientlite_test"


class Host:
    """The node's own network, in which the agent would live, and its packet filter."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.fd = os.open(f"/run/netns/{lab.node}", os.O_RDONLY | os.O_CLOEXEC)
        self.nft(f"""
            table inet {_TABLE} {{
                counter seen {{}}
                chain before {{
                    type filter hook prerouting priority raw;
                    tcp dport {PORT} counter name seen
                    tcp sport {PORT} counter name seen
                }}
                chain closed {{ type filter hook forward priority filter; }}
            }}
        """)

    def nft(self, rules: str) -> None:
        sh(f"ip netns exec {self.lab.node} nft -f - <<'END'\n{rules}\nEND")

    def close_the_way(self) -> None:
        """Nothing of the application's port is forwarded any more."""
        rule = f"add rule inet {_TABLE} closed tcp"
        self.nft(f"{rule} dport {PORT} drop\n{rule} sport {PORT} drop")

    def open_the_way(self) -> None:
        self.nft(f"flush chain inet {_TABLE} closed")

    @property
    def seen(self) -> int:
        """Packets of the application's port that came to the host's network layer."""
        told = json.loads(sh(f"ip netns exec {self.lab.node} nft -j list counter inet {_TABLE} seen"))
        return int(next(each["counter"]["packets"] for each in told["nftables"] if "counter" in each))

    def close(self) -> None:
        self.nft(f"delete table inet {_TABLE}")
        os.close(self.fd)


def add(redirect: Redirect, lab: Lab, *slots: int) -> None:
    """Give the lab's pods, in order, the short cut under these slots."""
    for pod, slot in zip(lab.pods, slots, strict=False):
        redirect.add(slot, pod.fd, netns.addresses(pod.fd))
