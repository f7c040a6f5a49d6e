"""Differences for the audit: the changed fields, before and after, as short texts."""

from collections.abc import Mapping
from datetime import timedelta
from typing import TypedDict

TEXT_MAX = 500  # characters of each, to keep audit rows short


class Differences(TypedDict, total=False):
    """Both or neither are given."""

    before: str
    after: str


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> Differences:
    """`before` and `after` for an audit entry, each "name=text; ..." of the differing fields; {} if none."""
    names = [name for name in after if before.get(name) != after[name]]
    if not names:
        return {}
    return {"before": _listed(before, names), "after": _listed(after, names)}


def _listed(fields: Mapping[str, object], names: list[str]) -> str:
    text = "; ".join(f"{name}={_text(fields.get(name))}" for name in names)
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 1] + "…"


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case timedelta():
            return f"{value.total_seconds():.0f}s"
        case tuple() | list():
            return " ".join(_text(each) if isinstance(each, Mapping) else str(each) for each in value)
        case Mapping():
            return ",".join(f"{name}={_text(each)}" for name, each in value.items())
        case _:
            return str(value)
