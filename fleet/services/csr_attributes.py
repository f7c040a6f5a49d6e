"""CSR attributes for a client: those of the model that it names or belongs to."""

from datetime import datetime

from fleet.domain.device import Model
from fleet.domain.errors import FleetError, Unavailable
from fleet.domain.labels import label_selects
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.services.credentials import BasicCredentials, token_parts, verified_token
from fleet.services.identity import identify


async def model_to_ask_for(
    registry: Registry, peer: Peer, credentials: BasicCredentials | None, label: str | None, now: datetime
) -> Model | None:
    """The model that `label` names; without a label, or under a tenant's, the token's model, or that of the device
    whose certificate `peer` presented; None when none of them names one.

    Nobody needs credentials: RFC 7030, 4.5 has this answered before a client can authenticate.

    Raises: Unauthenticated (`bad-token`). Unavailable.
    """
    of_token = await _of_token(registry, credentials) if credentials is not None else None
    named = await registry.model(label) if label is not None else None
    if named is not None:
        return named
    try:
        shown = of_token if credentials is not None else await _of_certificate(registry, peer, now)
    except Unavailable:
        raise
    except FleetError:
        return None
    if label is not None and shown is not None and not label_selects(label, shown.name, shown.rules):
        return None
    return shown


async def _of_certificate(registry: Registry, peer: Peer, now: datetime) -> Model | None:
    if peer.fingerprint is None:
        return None
    facts = await identify(registry, peer, now, opens_to_claims=True, renews=True)
    return await registry.model(facts.claim.model) if facts.claim is not None else facts.model


async def _of_token(registry: Registry, credentials: BasicCredentials) -> Model | None:
    token_id, secret = token_parts(credentials.password)
    token = verified_token(await registry.token(token_id), secret)
    name = token.model
    if token.device_id is not None:
        device = await registry.device(token.device_id)
        name = device.model if device is not None else None
    return await registry.model(name) if name is not None else None
