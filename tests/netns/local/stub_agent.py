"""Stands in for the node's agent: speaks the enrolment protocol, captures nothing, writes down what it saw.

Each line on standard output: KIND NAMESPACE/NAME ANNOTATION INODE, where ANNOTATION is what the objects
folder said of the pod at that moment, and INODE identifies the namespace that came with an Add. A file
called "refuse" in the node's folder makes it refuse Adds.
"""

import json
import os
import socket
from pathlib import Path

from istiodlite.api import zds_pb2

SOCKET = Path(os.environ["INPOD_UDS"])
OBJECTS = SOCKET.parents[2] / "objects"


def annotation(pod: str) -> str:
    namespace, _, name = pod.partition("/")
    try:
        obj = json.loads((OBJECTS / f"pod.{namespace}.{name}.yaml").read_text())
    except FileNotFoundError:
        return "gone"
    return str(obj["metadata"]["annotations"].get("ambient.istio.io/redirection", "none"))


def main() -> None:
    names: dict[str, str] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(SOCKET))
        sock.send(zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString())
        while True:
            packet, fds, _, _ = socket.recv_fds(sock, 1024, 4)
            if not packet:
                return
            request = zds_pb2.WorkloadRequest()
            request.ParseFromString(packet)
            kind = str(request.WhichOneof("payload"))
            body = getattr(request, kind)
            if kind == "add":
                names[body.uid] = f"{body.workload_info.namespace}/{body.workload_info.name}"
            pod = names.get(getattr(body, "uid", ""), "-")
            inode = os.fstat(fds[0]).st_ino if fds else 0
            print(kind, pod, annotation(pod), inode, flush=True)
            for fd in fds:
                os.close(fd)
            refused = kind == "add" and (SOCKET.parent / "refuse").exists()
            ack = zds_pb2.Ack(error="not today" if refused else "")
            sock.send(zds_pb2.WorkloadResponse(ack=ack).SerializeToString())


if __name__ == "__main__":
    main()
