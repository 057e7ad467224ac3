"""Kubernetes objects to one `Desired`, or to a list of errors (one line each). Pure.

Nothing is changed anywhere until the whole folder is without error.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from daemonset.local.containers import BadContainer, secret_data
from daemonset.local.desired import SYSTEM_NAMESPACE, BadManifests, DeploymentSpec, Desired, NodeSpec
from daemonset.local.names import is_dns_label, is_dns_name
from daemonset.local.references import check_accounts, check_addresses, check_environment
from daemonset.local.servicespec import BadService, ServiceSpec, SliceSpec, parse_service, parse_slice
from daemonset.local.template import Json, Key, PodTemplate, canonical, make_template, safe_hash
from ztunnel.enrol.settings import read

DEFAULT_NODES = 2
CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", "GatewayClass", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
)
NOT_RUN = frozenset({"StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"})
NODE_NAME_LIMIT = 40  # its sockets' paths have to stay below 108 bytes


def compile_objects(
    objects: Iterable[Json], nodes: int | None = None, present: Iterable[NodeSpec] = ()
) -> Desired:
    """Desired state of the objects.

    `nodes` is the least number of nodes; None: those there are (`present`) stay, unless they were declared
    and no longer are. Raises BadManifests.
    """
    builder = _Builder()
    for obj in objects:
        builder.add(obj)
    return builder.finish(nodes, [n.name for n in present if not n.declared])


class _Builder:
    """Collects objects kind by kind, with errors rather than exceptions: users see all of them at once."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.nodes: dict[str, NodeSpec] = {}
        self.pods: dict[Key, PodTemplate] = {}
        self.deployments: dict[Key, DeploymentSpec] = {}
        self.services: dict[Key, ServiceSpec] = {}
        self.slices: list[SliceSpec] = []
        self.namespaces: dict[str, Mapping[str, str]] = {}
        self.config_maps: dict[Key, Mapping[str, str]] = {}
        self.secrets: dict[Key, Mapping[str, str]] = {}
        self.accounts: set[Key] = set()

    def add(self, obj: Json) -> None:
        kind, meta = str(obj.get("kind") or ""), obj.get("metadata") or {}
        name = meta.get("name")
        if not isinstance(name, str) or not is_dns_name(name):
            self.errors.append(f"{kind or 'object'} {name!r}: metadata.name has to be a DNS name")
            return
        namespace = "" if kind in CLUSTER_SCOPED else str(meta.get("namespace") or "default")
        where = f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
        if (kind, namespace, name) in self.objects:
            self.errors.append(f"{where} is declared twice: keep one of them")
            return
        metadata = {**meta, **({"namespace": namespace} if namespace else {})}
        self.objects[kind, namespace, name] = {**obj, "metadata": metadata}
        if kind in NOT_RUN:
            self.notes.append(f"{where} is not run here: use a Deployment or Pods")
        adder = getattr(self, f"_add_{kind.lower()}", None)
        if adder is not None:
            try:
                adder((namespace, name), obj)
            except (BadContainer, BadService) as error:
                self.errors.append(f"{where}: {error}")
            except (TypeError, AttributeError, ValueError, KeyError):
                self.errors.append(f"{where}: its shape is wrong; see the Kubernetes reference for {kind}")

    def _add_namespace(self, key: Key, obj: Json) -> None:
        self.namespaces[key[1]] = _strings(obj["metadata"].get("labels"))

    def _add_node(self, key: Key, obj: Json) -> None:
        if not _is_node_name(key[1]):
            raise BadContainer(f"a node's name has to be a DNS label of at most {NODE_NAME_LIMIT} characters")
        self.nodes[key[1]] = NodeSpec(key[1], _strings(obj["metadata"].get("labels")), declared=True)

    def _add_serviceaccount(self, key: Key, obj: Json) -> None:
        self.accounts.add(key)

    def _add_configmap(self, key: Key, obj: Json) -> None:
        self.config_maps[key] = {k: str(v) for k, v in (obj.get("data") or {}).items()}

    def _add_secret(self, key: Key, obj: Json) -> None:
        self.secrets[key] = secret_data(obj)

    def _add_service(self, key: Key, obj: Json) -> None:
        self.services[key] = parse_service(*key, obj.get("spec") or {})

    def _add_endpointslice(self, key: Key, obj: Json) -> None:
        found = parse_slice(key[0], obj)
        if found is not None:
            self.slices.append(found)

    def _add_pod(self, key: Key, obj: Json) -> None:
        meta = obj["metadata"]
        self._put_pod(
            make_template(
                *key, _strings(meta.get("labels")), _strings(meta.get("annotations")), obj.get("spec") or {}
            )
        )

    def _add_deployment(self, key: Key, obj: Json) -> None:
        spec = obj.get("spec") or {}
        template = spec.get("template") or {}
        meta, pod_spec = template.get("metadata") or {}, template.get("spec") or {}
        labels = _strings(meta.get("labels"))
        selector = _strings((spec.get("selector") or {}).get("matchLabels"))
        if not selector:
            raise BadService("spec.selector.matchLabels is missing")
        if not selector.items() <= labels.items():
            raise BadService("spec.selector does not match the labels of spec.template")
        replicas = spec.get("replicas")
        replicas = 1 if replicas is None else int(replicas)
        if not 0 <= replicas <= 200:
            raise BadService("spec.replicas has to be from 0 to 200")
        pod_hash = safe_hash(canonical(template), 10)
        labels = {**labels, "pod-template-hash": pod_hash}
        made = []
        for ordinal in range(replicas):
            name = f"{key[1]}-{pod_hash}-{safe_hash(f'{key}{pod_hash}{ordinal}', 5)}"
            pod = make_template(
                key[0], name, labels, _strings(meta.get("annotations")), pod_spec, key[1], pod_hash
            )
            self._put_pod(pod)
            made.append(pod.key)
        recreate = (spec.get("strategy") or {}).get("type") == "Recreate"
        self.deployments[key] = DeploymentSpec(key, tuple(made), recreate)

    def _put_pod(self, pod: PodTemplate) -> None:
        if pod.key in self.pods:
            self.errors.append(f"two pods are called {pod.namespace}/{pod.name}: rename one")
        self.pods[pod.key] = pod

    def finish(self, nodes: int | None, spare: Sequence[str]) -> Desired:
        self._imply_namespaces()
        self._check_references()
        self._complete_nodes(nodes, spare)
        if any("image" in c for p in self.pods.values() for c in p.spec.get("containers") or ()):
            self.notes.append("images are not run: each container's command is a program of this machine")
        self._check_capture()
        if self.errors:
            raise BadManifests(self.errors)
        return Desired(
            self.nodes,
            self.pods,
            self.deployments,
            self.services,
            tuple(self.slices),
            self.namespaces,
            self.config_maps,
            self.secrets,
            tuple(self.objects.values()),
            tuple(self.notes),
        )

    def _check_capture(self) -> None:
        notes = (
            f"{pod.owner}: {problem}" for pod in self.pods.values() for problem in read(pod.annotations)[1]
        )
        self.notes += dict.fromkeys(notes)

    def _imply_namespaces(self) -> None:
        for _, namespace, _ in list(self.objects):
            self._imply_namespace(namespace, "is not declared; made without labels")
        for namespace in ("default", "kube-system", SYSTEM_NAMESPACE):
            self._imply_namespace(namespace, "")

    def _imply_namespace(self, name: str, note: str) -> None:
        if not name or name in self.namespaces:
            return
        if note and name not in ("default", "kube-system", SYSTEM_NAMESPACE):
            self.notes.append(f"namespace {name} {note}")
        labels = {"kubernetes.io/metadata.name": name}
        self.namespaces[name] = {}
        self.objects["Namespace", "", name] = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        }

    def _check_references(self) -> None:
        for pod in self.pods.values():
            self.errors += check_environment(pod, self.config_maps, self.secrets)
        self.errors += check_accounts(self.pods.values(), self.accounts)
        self.errors += check_addresses(self.services.values())

    def _complete_nodes(self, least: int | None, spare: Sequence[str]) -> None:
        """Nodes: those declared, those that pods name, then of those present, then node1, node2..."""
        for pod in self.pods.values():
            self._need_node(pod)
        if least is None:
            least = len({*self.nodes, *spare}) or DEFAULT_NODES
        fresh = (f"node{number}" for number in itertools.count(1))
        for name in itertools.chain(spare, fresh):
            if len(self.nodes) >= least:
                break
            self.nodes.setdefault(name, NodeSpec(name))
        for name, node in self.nodes.items():
            labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **node.labels}
            self.nodes[name] = replace(node, labels=labels)

    def _need_node(self, pod: PodTemplate) -> None:
        named = pod.spec.get("nodeName") or (pod.spec.get("nodeSelector") or {}).get("kubernetes.io/hostname")
        if not named or named in self.nodes:
            return
        if _is_node_name(str(named)):
            self.nodes[named] = NodeSpec(named)
        else:
            self.errors.append(f"pod {pod.namespace}/{pod.name}: {named!r} cannot be a node's name")


def _is_node_name(name: str) -> bool:
    return is_dns_label(name) and len(name) <= NODE_NAME_LIMIT


def _strings(value: object) -> dict[str, str]:
    """Labels or annotations. BadService unless every value is a string."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadService("labels and annotations have to be mappings")
    for name, text in value.items():
        if not isinstance(text, str):
            raise BadService(f"label or annotation {name!r} has to be a string: quote {text!r}")
    return dict(value)
