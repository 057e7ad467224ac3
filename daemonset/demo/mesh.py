"""The demo's hands: everything it does to the mesh and everything it reads, by the user's own commands."""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
LOG_FIELD = re.compile(r'([\w.]+)=("(?:[^"\\]|\\.)*"|\S+)')


class NotObserved(Exception):
    """What a check waited for did not happen; the text is shown in the table."""


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 10.0, pause: float = 0.05) -> T:
    """Calls `look` until it returns something true; raises NotObserved after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            raise NotObserved(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


@dataclass(frozen=True, slots=True)
class Mesh:
    """One running local mesh, reached through `ambientctl --mesh NAME`."""

    name: str
    folder: Path

    def ctl(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `ambientctl`; never raises on a non-zero exit."""
        verb, *rest = words
        command = [sys.executable, "-m", "daemonset.ctl", verb, "--mesh", self.name, *rest]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout)

    def must(self, *words: str, timeout: float = 60.0) -> str:
        """Runs `ambientctl`; its output, or NotObserved with its error line."""
        done = self.ctl(*words, timeout=timeout)
        if done.returncode:
            raise NotObserved(f"ambientctl {' '.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def exec(self, pod: str, *command: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Runs a command in a pod ("namespace/name")."""
        return self.ctl("exec", pod, "--", *command, timeout=timeout)

    def spawn(self, pod: str, *command: str) -> "subprocess.Popen[str]":
        """Starts a command in a pod with its output piped, line by line."""
        words = ["exec", "--mesh", self.name, pod, "--", *command]
        return subprocess.Popen(
            [sys.executable, "-m", "daemonset.ctl", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def apply(self) -> None:
        """`ambientctl up` on the demo's (changed) folder."""
        self.must("up", str(self.folder), timeout=90)

    def write(self, file: str, text: str | None) -> None:
        """Writes, or with None removes, one manifest of the demo's folder."""
        path = self.folder / file
        if text is None:
            path.unlink()
        else:
            path.write_text(text)

    def status(self) -> dict[str, Any]:
        """`ambientctl status --json`."""
        found: dict[str, Any] = json.loads(self.must("status", "--json"))
        return found

    def pod_addresses(self) -> dict[str, list[str]]:
        """Addresses of each pod, by "namespace/name"; IPv4 first."""
        return {name: pod["addresses"] for name, pod in self.status()["pods"].items()}

    def enrolled(self) -> set[str]:
        """Pods that the agents have taken in."""
        return {name for name, pod in self.status()["pods"].items() if pod["enrolled"]}

    def agent_pid(self, node: str) -> int:
        """Process id of the node's agent; 0 while there is none."""
        return int(self.status()["nodes"][node]["agent"]["pid"] or 0)

    def netns(self, node: str) -> str:
        """Name of the node's network namespace."""
        return str(self.status()["nodes"][node]["netns"])

    def uplink(self, node: str) -> str:
        """The node's interface towards the other nodes."""
        return str(self.status()["nodes"][node]["uplink"])

    def in_pod_netns(self, pod: str, *command: str) -> str:
        """Output of a command that looks at the pod's network namespace from outside."""
        netns = self.status()["pods"][pod]["netns"]
        words = ["ip", "netns", "exec", netns, *command]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout

    def access_log(self, node: str) -> list[dict[str, str]]:
        """The agent's finished connections as dictionaries of the fields logged."""
        lines = self.must("logs", f"ztunnel/{node}").splitlines()
        return [fields(line) for line in lines if "\taccess\t" in line]

    def metrics(self, node_netns: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Samples by name and labels, as Prometheus would scrape them from the node's agent."""
        command = ["ip", "netns", "exec", node_netns, "curl", "-sf", "http://127.0.0.1:15020/metrics"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return samples


def fields(line: str) -> dict[str, str]:
    """`k=v` and `k="v"` of one log line; the message is under "message"."""
    found = {name: shlex.split(value)[0] for name, value in LOG_FIELD.findall(line)}
    parts = line.split("\t")
    return {"message": parts[3].split(" ")[0] if len(parts) > 3 else "", "line": line, **found}


def matching(samples: Mapping[tuple[tuple[str, str], ...], float], **labels: str) -> float:
    """Sum of the samples that carry all the given labels."""
    wanted = set(labels.items())
    return sum(value for key, value in samples.items() if wanted <= set(key))
