"""When to renew: what one client is told, and how a whole model is told to be quicker."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fleet.domain.credential import USABLE
from fleet.domain.device import DeviceState, Model
from fleet.domain.errors import Invalid, NotFound
from fleet.domain.model_rules import Campaign
from fleet.domain.ports import Registry
from fleet.domain.renewal import Window, suggested_window
from fleet.services.inventory import known_model

_IN_SERVICE = frozenset({DeviceState.REGISTERED, DeviceState.ACTIVE})


async def renewal_window(registry: Registry, fingerprint: bytes) -> Window:
    """When the device's certificate of this fingerprint should be renewed.

    Raises: NotFound (`no-such-certificate`): there is none that could be. Unavailable.
    """
    facts = await registry.holder_facts(fingerprint)
    renewable = (
        facts is not None
        and facts.device is not None
        and facts.model is not None
        and facts.device.state in _IN_SERVICE
        and facts.credential.state in USABLE
    )
    if facts is None or facts.model is None or not renewable:
        raise NotFound("no-such-certificate", "There is no certificate of this fingerprint that can be renewed.")
    return suggested_window(facts.credential, facts.model.rules.renewal.campaign)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a campaign has come."""

    model: str
    campaign: Campaign | None
    devices: int
    """Those of the model that hold a certificate."""
    renewed: int
    """Those of them that hold one issued since the campaign's `before`."""


def with_campaign(model: Model, before: datetime, spread: timedelta, now: datetime) -> Model:
    """`model` with the windows of all certificates issued before `before` moved into `spread` from `now` on.

    Raises: Invalid (`bad-campaign`).
    """
    if before > now:
        raise Invalid("bad-campaign", "Certificates that are still to be issued need no renewal.", "Name a time past.")
    rules = model.rules
    return replace(model, rules=replace(rules, renewal=replace(rules.renewal, campaign=Campaign(before, now, spread))))


def without_campaign(model: Model) -> Model:
    """`model` with the usual windows."""
    return replace(model, rules=replace(model.rules, renewal=replace(model.rules.renewal, campaign=None)))


async def progress(registry: Registry, name: str) -> Progress:
    """How far the campaign of the model `name` has come; it looks at each of its devices.

    Raises: NotFound (`no-such-model`). Unavailable.
    """
    model = await known_model(registry, name)
    campaign = model.rules.renewal.campaign
    if campaign is None:
        return Progress(name, None, 0, 0)
    devices, renewed = await registry.count_renewals(name, campaign.before)
    return Progress(name, campaign, devices, renewed)
