"""How Istio's istiod is set up where it is measured or tested against."""

from __future__ import annotations


def settings(pod: str) -> dict[str, str]:
    """Environment of an istiod that believes to be this pod: the ambient profile's, and nothing that writes to the
    cluster's webhooks and gateways (their status is part of tests)."""
    return {
        "PILOT_ENABLE_AMBIENT": "true",
        "CA_TRUSTED_NODE_ACCOUNTS": "istio-system/ztunnel",
        "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": "false",
        "PILOT_ENABLE_GATEWAY_API_STATUS": "false",
        "PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER": "false",
        "VALIDATION_WEBHOOK_CONFIG_NAME": "",
        "INJECTION_WEBHOOK_CONFIG_NAME": "",
        "PILOT_CERT_PROVIDER": "istiod",
        "JWT_POLICY": "third-party-jwt",
        "CLUSTER_ID": "Kubernetes",
        "POD_NAME": pod,
        "POD_NAMESPACE": "istio-system",
        "SERVICE_ACCOUNT": "istiod",
    }
