"""Istio's MeshConfig from YAML: the fields that count here. (istio.mesh.v1alpha1.MeshConfig)"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from istiodlite.manifests.errors import FieldError
from istiodlite.manifests.fields import Field
from istiodlite.manifests.selector import parse_label_selector
from istiodlite.registry.config import MeshConfig
from istiodlite.registry.visibility import EntryVisibility, Visibility, VisibilityPolicy

_UNSPECIFIED = "VISIBILITY_UNSPECIFIED"
HONOURED = (
    "trustDomain",
    "trustDomainAliases",
    "rootNamespace",
    "discoverySelectors",
    "serviceEntryVisibility",
)


def load_mesh(path: Path, base: MeshConfig) -> tuple[MeshConfig, list[str]]:
    """The settings of a file over `base`, and the names of those in it that do not count here.

    Raises FieldError, and OSError if the file cannot be read.
    """
    try:
        value: Any = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise FieldError(str(path), "is not YAML; give the `mesh` part of Istio's ConfigMap") from None
    return parse_mesh(Field(value), base)


def parse_mesh(body: Field, base: MeshConfig) -> tuple[MeshConfig, list[str]]:
    """Raises FieldError."""
    visibility = body["serviceEntryVisibility"]
    mesh = dataclasses.replace(
        base,
        trust_domain=body["trustDomain"].text(base.trust_domain),
        trust_domain_aliases=body["trustDomainAliases"].texts(),
        root_namespace=body["rootNamespace"].text(base.root_namespace),
        discovery_selectors=tuple(parse_label_selector(item) for item in body["discoverySelectors"].items()),
        entry_visibility=_visibility(visibility) if visibility.present else None,
    )
    return mesh, [name for name, _ in body.entries() if name not in HONOURED]


def _visibility(field: Field) -> EntryVisibility:
    field.only("defaultVisibility", "applyToSidecars", "policies")
    policies = []
    for item in field["policies"].items():
        item.only("visibility", "matchingRules")
        rules = item["matchingRules"].items()
        selectors = tuple(
            parse_label_selector(rule.only("namespaceSelector")["namespaceSelector"]) for rule in rules
        )
        policies.append(VisibilityPolicy(_choice(item["visibility"]), selectors))
    return EntryVisibility(_choice(field["defaultVisibility"]), tuple(policies))


def _choice(field: Field) -> Visibility:
    text = field.choice((*Visibility, _UNSPECIFIED), _UNSPECIFIED)
    return Visibility.PUBLIC if text == _UNSPECIFIED else Visibility(text)
