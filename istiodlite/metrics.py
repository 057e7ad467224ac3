"""Counters of the control plane, under istiod's names where istiod has the same figure."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """One set per server; `registry` is what /metrics shows."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.streams = Gauge("pilot_xds", "Connected xDS streams", registry=r)
        self.pushes = Counter("pilot_xds_pushes", "xDS responses sent", ["type"], registry=r)
        self.pushed = Counter("istiodlite_xds_resources", "Resources sent", ["type"], registry=r)
        self.rejects = Counter(
            "pilot_total_xds_rejects", "xDS responses refused (NACK)", ["type"], registry=r
        )
        self.refused_streams = Counter(
            "istiodlite_xds_refused", "xDS streams refused", ["reason"], registry=r
        )
        self.convergence = Histogram(
            "pilot_proxy_convergence_time",
            "Seconds from a seen change to the response being written",
            registry=r,
            buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 1, 3, 5, 10, 20),
        )
        self.batches = Counter("istiodlite_batches", "Debounced batches of changes", registry=r)
        self.build_time = Histogram(
            "istiodlite_build_seconds", "Time to turn a batch into resources", registry=r
        )
        self.objects = Gauge("istiodlite_objects", "Objects read", ["kind"], registry=r)
        self.resources = Gauge("istiodlite_resources", "Resources served", ["type"], registry=r)
        self.object_errors = Gauge(
            "istiodlite_object_errors", "Objects and files that cannot be used as they are", registry=r
        )
        self.reviews = Counter(
            "istiodlite_webhook_reviews", "Objects reviewed before they were stored", ["allowed"], registry=r
        )
        self.source_age = Gauge(
            "istiodlite_source_age_seconds",
            "Seconds for which changes may have been missed; 0 while the source is followed",
            registry=r,
        )
        self.resource_age = Gauge(
            "istiodlite_source_resource_age_seconds", "The same for one resource", ["resource"], registry=r
        )
        self.csrs = Counter("citadel_server_csr_count", "Signing requests", registry=r)
        self.issued = Counter("citadel_server_success_cert_issuance_count", "Certificates issued", registry=r)
        self.authentication_failures = Counter(
            "citadel_server_authentication_failure_count", "Callers without a valid token", registry=r
        )
        self.refused_identities = Counter(
            "istiodlite_ca_refused", "Identities refused to authenticated callers", registry=r
        )
        self.root_expiry = Gauge(
            "citadel_server_root_cert_expiry_timestamp", "End of the root, seconds since 1970", registry=r
        )
