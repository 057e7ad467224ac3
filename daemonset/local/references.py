"""What Kubernetes refuses when a pod or a Service is made, refused before anything is made. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Set

from daemonset.local.containers import BadContainer, PodFacts, environment
from daemonset.local.servicespec import ServiceSpec
from daemonset.local.template import Key, PodTemplate

Data = Mapping[Key, Mapping[str, str]]


def check_accounts(pods: Iterable[PodTemplate], accounts: Set[Key]) -> Iterator[str]:
    """A line for each owner of pods whose ServiceAccount no manifest declares."""
    seen: set[Key] = set()
    for pod in pods:
        owner = (pod.namespace, pod.deployment or pod.name)
        if owner in seen:
            continue
        seen.add(owner)
        if (pod.namespace, pod.service_account) not in accounts and pod.service_account != "default":
            yield (
                f"pod {pod.namespace}/{pod.name} runs as ServiceAccount {pod.service_account},"
                f" which no manifest declares in namespace {pod.namespace}"
            )


def check_environment(pod: PodTemplate, config_maps: Data, secrets: Data) -> Iterator[str]:
    """A line for each container whose variables come from what is not there."""
    facts = PodFacts(pod.name, pod.namespace, "", pod.labels, pod.annotations, "", "", (), ())
    for container in (*pod.init, *pod.containers):
        try:
            environment(container, facts, lambda *key: config_maps.get(key), lambda *key: secrets.get(key))
        except BadContainer as error:
            yield f"Pod {pod.namespace}/{pod.name}: {error}"


def check_addresses(services: Iterable[ServiceSpec]) -> Iterator[str]:
    """A line if two Services ask for one clusterIP."""
    owner: dict[str, ServiceSpec] = {}
    for service in services:
        for address in service.requested:
            other = owner.setdefault(address, service)
            if other is not service:
                yield (
                    f"Service {service.namespace}/{service.name}: clusterIP {address} is already"
                    f" that of {other.namespace}/{other.name}"
                )
                return
