"""EST labels: the optional path segment before an operation (RFC 7030, 3.2.2), a model or a tenant."""

from collections.abc import Collection

from fleet.domain.errors import Conflict, Invalid
from fleet.domain.model_rules import ModelRules

OPERATIONS = frozenset({"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs"})
"""RFC 7030, 3.2.2: a label is never equal to an operation."""


def must_be_a_label(name: str, what: str) -> None:
    """Raises: Invalid (`bad-name`): the name equals an EST operation."""
    if name in OPERATIONS:
        raise Invalid("bad-name", f"{name!r} is an operation of EST and cannot name a {what}.", "Choose another name.")


def must_be_no_tenant(model: str, tenants: Collection[str]) -> None:
    """Raises: Conflict (`name-taken`): the label would be ambiguous."""
    if model in tenants:
        raise Conflict("name-taken", f"There is a tenant {model}.", "A label names one or the other: choose another.")


def label_selects(label: str, model: str, rules: ModelRules) -> bool:
    """Whether a request under `label` may be for a device of `model`."""
    return label in (model, rules.tenant)
