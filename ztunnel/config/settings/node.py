"""Who the agent is: its node, its own pod, its cluster."""

from ztunnel.config import values
from ztunnel.config.setting import Setting

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "NODE_NAME", "node_name", values.required, "", "name of this node; pods of other nodes are not ours"
    ),
    Setting("POD_NAME", "pod_name", values.text, "ztunnel", "name of the agent's own pod"),
    Setting(
        "POD_NAMESPACE", "pod_namespace", values.text, "istio-system", "namespace of the agent's own pod"
    ),
    Setting(
        "INSTANCE_IP", "instance_ip", values.text, "1.1.1.1", "the agent's own address, part of its xDS id"
    ),
    Setting(
        "SERVICE_ACCOUNT", "service_account", values.text, "ztunnel", "service account of the agent's own pod"
    ),
    Setting(
        "CLUSTER_ID",
        "cluster_id",
        values.text,
        "Kubernetes",
        "id of this cluster",
        also=("ISTIO_META_CLUSTER_ID",),
    ),
    Setting("NETWORK", "network", values.text, "", "network id of this node"),
    Setting("CLUSTER_DOMAIN", "cluster_domain", values.text, "cluster.local", "DNS domain of the cluster"),
    Setting(
        "TRUST_DOMAIN", "trust_domain", values.text, "cluster.local", "trust domain until xDS names another"
    ),
    Setting(
        "TRUST_DOMAIN_ALIASES",
        "trust_domain_aliases",
        values.names,
        "",
        "more trust domains of peers (a,b,...)",
    ),
)
