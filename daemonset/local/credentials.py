"""What an agent needs to be trusted: the root certificate and a token bound to its pod and node."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from daemonset.local.desired import SYSTEM_NAMESPACE
from daemonset.local.folder import write_atomically
from istiodlite.ca.authority import Authority
from istiodlite.ca.caller import Caller
from istiodlite.ca.tokens import load_or_create_token_key, mint

TOKEN_SECONDS = 12 * 3600
TRUST_DOMAIN = "cluster.local"
AGENT_ACCOUNT = "ztunnel"


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """The agent's pod."""

    pod: str
    uid: str
    node: str


def write_root(data: Path, target: Path) -> None:
    """Makes the authority if there is none yet and writes its root certificates, where they are not as they should be:
    roots are replaced while a mesh runs, and agents read this file whenever they connect. Raises DataError."""
    roots = Authority.load_or_create(data, TRUST_DOMAIN).roots_pem
    if not target.exists() or target.read_bytes() != roots:
        write_atomically(target, roots.decode())


def write_token(data: Path, target: Path, agent: AgentIdentity) -> None:
    """A fresh token for the agent, readable by root only. Raises DataError."""
    caller = Caller(SYSTEM_NAMESPACE, AGENT_ACCOUNT, agent.pod, agent.uid, agent.node)
    now = datetime.datetime.now(datetime.UTC)
    write_atomically(target, mint(load_or_create_token_key(data), caller, now, TOKEN_SECONDS), mode=0o600)
