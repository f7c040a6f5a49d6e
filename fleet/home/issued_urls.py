"""URLs that certificates in use name, also those of earlier settings: found in a sample of the registry's."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509

from fleet.ca.key_identifiers import identifier_of, issuer_identifier_of
from fleet.domain.credential import Credential
from fleet.domain.distribution import shards_of_path
from fleet.domain.ports import Registry
from fleet.home.authorities import Authorities
from fleet.home.home_cas import home_cas
from fleet.home.layout import Home, settings_of
from fleet.home.publication_check import SERIAL_UNKNOWN, PublishedUrl, named_in

SAMPLES = 256
"""Moments between now and the last certificate's end, from each of which some certificates are looked at."""
AT_ONCE = 4


async def issued_urls(home: Home, authorities: Authorities, registry: Registry, now: datetime) -> list[PublishedUrl]:
    """Everything that some of the certificates name that have not ended by `now`, and every shard that is published.

    Settings change at times, and a certificate's end follows from its issue: so what many of them name is among these.
    """
    issuers = {identifier_of(ca.certificate): ca.certificate for ca in home_cas(home, authorities)}
    found: dict[tuple[str, str, bytes], PublishedUrl] = {}
    for each in await _sample(registry, now):
        for published in _named(each, issuers):
            found.setdefault((published.kind, published.url, identifier_of(published.issuer)), published)
    base = settings_of(home).publish_url
    for head in await registry.crl_heads():
        issuer = issuers.get(head.issuer)
        if base and issuer is not None and shards_of_path(head.path):
            key = ("crl", base + head.path, head.issuer)
            found.setdefault(key, PublishedUrl("crl", base + head.path, issuer, SERIAL_UNKNOWN))
    return list(found.values())


async def _sample(registry: Registry, now: datetime) -> list[Credential]:
    end = await registry.latest_end() + timedelta(microseconds=1)
    found: dict[bytes, Credential] = {}
    if now < end:
        for part in range(SAMPLES):
            after = now + (end - now) * part / SAMPLES, b""
            page = await registry.credentials_by_expiry(end, AT_ONCE, after=after)
            found |= {each.fingerprint: each for each in page}
    return list(found.values())


def _named(credential: Credential, issuers: dict[bytes, x509.Certificate]) -> Iterator[PublishedUrl]:
    certificate = x509.load_der_x509_certificate(credential.der)
    issuer = issuers.get(issuer_identifier_of(certificate) or b"")
    if issuer is not None:  # else it is forgotten, and none of its certificates are in use
        yield from named_in(certificate.extensions, issuer, SERIAL_UNKNOWN)
