"""Whom the agent asks - control plane and certificate authority - and how long it waits for an answer."""

from ztunnel.config import values
from ztunnel.config.setting import Setting

ROOT_CA = "./var/run/secrets/istio/root-cert.pem"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "XDS_ADDRESS",
        "xds_address",
        values.endpoint,
        "https://istiod.istio-system.svc:15012",
        "control plane (xDS)",
    ),
    Setting("CA_ADDRESS", "ca_address", values.endpoint, "", "certificate authority; empty: XDS_ADDRESS"),
    Setting(
        "XDS_ROOT_CA", "xds_root_ca", values.text, ROOT_CA, "roots of the control plane: path, SYSTEM or PEM"
    ),
    Setting("CA_ROOT_CA", "ca_root_ca", values.text, ROOT_CA, "roots of the CA: path, SYSTEM or PEM"),
    Setting("ALT_XDS_HOSTNAME", "alt_xds_hostname", values.text, "", "TLS name of the control plane"),
    Setting("ALT_CA_HOSTNAME", "alt_ca_hostname", values.text, "", "TLS name of the CA"),
    Setting(
        "AUTH_TOKEN",
        "auth_token",
        values.text,
        "./var/run/secrets/tokens/istio-token",
        "bearer token: path (read again at each use) or literal; empty: none",
    ),
    Setting("XDS_ON_DEMAND", "xds_on_demand", values.flag, "false", "ask for addresses when they are needed"),
    Setting("SECRET_TTL", "secret_ttl", values.seconds, "86400s", "life of a certificate to ask for"),
    Setting("CRL_PATH", "crl_path", values.optional_path, "", "certificate revocation lists (PEM); watched"),
    Setting(
        "WORKLOAD_WAIT",
        "workload_wait",
        values.seconds,
        "5s",
        "wait for an own pod that xDS does not know yet",
    ),
    Setting(
        "POLICY_WAIT",
        "policy_wait",
        values.seconds,
        "2s",
        "wait for a policy that a workload lists; then it denies",
    ),
    Setting("CERTIFICATE_WAIT", "certificate_wait", values.seconds, "5s", "wait for a certificate"),
)
