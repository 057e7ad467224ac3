"""Label selectors with expressions: plain values to objects."""

from istiodlite.manifests.fields import Field
from istiodlite.objects import LabelSelector, Requirement


def parse_label_selector(field: Field) -> LabelSelector:
    """matchLabels and matchExpressions; an absent one matches everything. Raises FieldError."""
    field.only("matchLabels", "matchExpressions")
    requirements = tuple(_requirement(item) for item in field["matchExpressions"].items())
    return LabelSelector(field["matchLabels"].labels(), requirements)


def _requirement(item: Field) -> Requirement:
    operator = item["operator"].choice(("In", "NotIn", "Exists", "DoesNotExist"))
    values = item["values"].texts()
    if operator in ("In", "NotIn") and not values:
        item["values"].fail(f"is missing; {operator} needs at least one")
    if operator in ("Exists", "DoesNotExist") and values:
        item["values"].fail(f"belongs to In and NotIn, not {operator}; remove it")
    return Requirement(item["key"].text(), operator, values)
