"""What the certificates of each CA of a home say about where it publishes, by its settings."""

from fleet.ca.distribution import Publication
from fleet.config.settings import EVERY_CA, OPERATORS_CA, OWN_CA, TENANT_CA, Settings


def publication_of(settings: Settings, tenant: str) -> Publication | None:
    """Of the issuing CA of `tenant`, "" for the fleet's own; None: its certificates name no place."""
    return _publication(settings, f"{TENANT_CA}{tenant}" if tenant else OWN_CA, settings.crl_shards)


def publication_of_operators(settings: Settings) -> Publication | None:
    """Of the operators' CA, whose CRL is not sharded: operators are few."""
    return _publication(settings, OPERATORS_CA, 1)


def publication_of_root(settings: Settings, tenant: str) -> Publication | None:
    """Of the root of `tenant`, "" for the fleet's, in the CAs below it: the OCSP responder answers for none of them."""
    return _publication(settings, f"{TENANT_CA}{tenant}" if tenant else OWN_CA, 1, ocsp=False)


def _publication(settings: Settings, name: str, shards: int, *, ocsp: bool = True) -> Publication | None:
    if not settings.publish_url:
        return None
    cdp, aia = ({EVERY_CA, name} & set(chosen) != set() for chosen in (settings.publish_cdp, settings.publish_aia))
    return Publication(settings.publish_url, shards, cdp=cdp, aia=aia, ocsp=ocsp)
