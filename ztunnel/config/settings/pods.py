"""Which pods are in, and how their connections are captured."""

from ztunnel.config import values
from ztunnel.config.setting import Setting

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "INPOD_UDS",
        "inpod_uds",
        values.optional_path,
        "/var/run/ztunnel/ztunnel.sock",
        "ZDS socket; empty: none",
    ),
    Setting(
        "AMBIENT_ENROL",
        "enrol",
        values.enrol,
        "auto",
        "who tells which pods are in: zds (a CNI agent), kubernetes (the agent looks itself), or auto: kubernetes "
        "in a cluster where there is no ZDS socket (docs/capture.md)",
    ),
    Setting(
        "AMBIENT_POD_CGROUPS",
        "pod_cgroups",
        values.paths,
        "",
        "directories below which pods' cgroups are (a,b,...); empty: AMBIENT_CGROUP, else every mount",
    ),
    Setting(
        "AMBIENT_POD_STATUS",
        "pod_status",
        values.flag,
        "true",
        "say on pods that they are captured; without it other nodes send them plaintext",
    ),
    Setting(
        "AMBIENT_ENROL_EXCLUDE_NAMESPACES",
        "enrol_excluded",
        values.names,
        "kube-system",
        "namespaces of which own discovery enrols no pod (a,b,...)",
    ),
    Setting(
        "AMBIENT_CGROUP",
        "cgroup",
        values.optional_path,
        "",
        "cgroup2 directory to attach to; empty: the mount",
    ),
    Setting(
        "AMBIENT_CAPTURE",
        "capture",
        values.capture_choice,
        "auto",
        "auto, or the variant B or C (docs/capture.md); auto takes C only where B does not work",
    ),
    Setting(
        "AMBIENT_PIN_DIR",
        "pin_dir",
        values.path,
        "/sys/fs/bpf/ambientlite",
        "where maps and links stay (bpffs)",
    ),
    Setting(
        "AMBIENT_FD_STORE",
        "fd_store",
        values.optional_path,
        "",
        "socket of `python -m ebpf.fdstore`, which keeps listeners while no agent is there; empty: none",
    ),
    Setting(
        "AMBIENT_EXEMPT_INBOUND_PORTS", "exempt_inbound", values.ports, "", "ports never captured inbound"
    ),
    Setting(
        "AMBIENT_EXEMPT_OUTBOUND_PORTS", "exempt_outbound", values.ports, "", "ports never captured outbound"
    ),
)
