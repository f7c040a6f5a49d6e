"""Renewal information for a device, and renewal campaigns of a model."""

from msgspec import Struct

from fleet.domain.credential import USABLE
from fleet.domain.device import IN_SERVICE
from fleet.domain.distrust import Distrust, issuer_mark
from fleet.domain.errors import NotFound
from fleet.domain.model_rules import Campaign
from fleet.domain.ports import HolderFacts, Registry
from fleet.domain.renewal import Window, suggested_window
from fleet.services.inventory import known_model


async def renewal_window(registry: Registry, fingerprint: bytes) -> Window:
    """The renewal window of the device's certificate with this fingerprint.

    Raises: NotFound (`no-such-certificate`): there is no usable one. Unavailable.
    """
    facts = await registry.holder_facts(fingerprint)
    renewable = (
        facts is not None
        and facts.device is not None
        and facts.model is not None
        and facts.device.state in IN_SERVICE
        and facts.credential.state in USABLE
        and not registry.revoked.refusal_code(facts)
    )
    if facts is None or facts.model is None or not renewable:
        raise NotFound("no-such-certificate", "There is no certificate of this fingerprint that can be renewed.")
    return suggested_window(facts.credential, facts.model.rules.renewal.campaign, _covering(facts))


async def fingerprint_of(registry: Registry, authority_key_id: bytes, serial: str) -> bytes | None:
    """Fingerprint of the certificate with this serial number, lower-case hex, that names this key as its CA's; None:
    there is none. One look-up by the serial number, which is unique here.
    """
    credential = await registry.credential(serial)
    if credential is None or issuer_mark(authority_key_id) not in credential.der:
        return None
    return credential.fingerprint


def _covering(facts: HolderFacts) -> list[Distrust]:
    model = facts.device.model if facts.device is not None else ""
    return [rule for rule in facts.distrusts if rule.may_renew and rule.covers(model, facts.credential)]


class Progress(Struct, frozen=True):
    """Progress of a campaign."""

    model: str
    campaign: Campaign | None
    devices: int
    """Devices of the model with a certificate."""
    renewed: int
    """Those with one issued since the campaign's `before`."""


async def progress(registry: Registry, name: str) -> Progress:
    """Progress of the campaign of the model `name`; reads each of its devices.

    Raises: NotFound (`no-such-model`). Unavailable.
    """
    model = await known_model(registry, name)
    campaign = model.rules.renewal.campaign
    if campaign is None:
        return Progress(name, None, 0, 0)
    devices, renewed = await registry.count_renewals(name, campaign.before)
    return Progress(name, campaign, devices, renewed)
