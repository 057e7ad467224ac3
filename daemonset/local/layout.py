"""Where a mesh's files are, below its run directory."""

from dataclasses import dataclass
from pathlib import Path

from daemonset.local.names import digest, run_dir


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of the mesh called `mesh`."""

    mesh: str

    @property
    def root(self) -> Path:
        """The run directory."""
        return run_dir(self.mesh)

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.root / "control.sock"

    @property
    def state(self) -> Path:
        """What `status` shows, as of the last change."""
        return self.root / "state.json"

    @property
    def index(self) -> Path:
        """The mesh's index: a number that decides its address ranges."""
        return self.root / "index"

    @property
    def objects(self) -> Path:
        """The folder that the control plane watches."""
        return self.root / "objects"

    @property
    def data(self) -> Path:
        """The control plane's keys."""
        return self.root / "data"

    @property
    def root_cert(self) -> Path:
        """Root certificates of the mesh."""
        return self.root / "root-cert.pem"

    @property
    def hosts(self) -> Path:
        """The name servers' hosts file."""
        return self.root / "hosts"

    def node(self, name: str) -> Path:
        """A node's folder."""
        return self.root / "nodes" / name

    def pod(self, namespace: str, name: str) -> Path:
        """A pod's folder."""
        return self.root / "pods" / _file(f"{namespace}.{name}")

    def log(self, name: str) -> Path:
        """Log of a program of the mesh itself."""
        return self.root / "logs" / f"{name}.log"

    def pod_logs(self, namespace: str, name: str) -> Path:
        """Folder of a pod's logs, one file per container."""
        return self.root / "logs" / "pods" / _file(f"{namespace}.{name}")


def _file(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:180]}-{digest(name, 16)}"
