"""The CAs of a home that publish CRLs."""

from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from fleet.ca.crl import LocalCrlSigner, urls_in
from fleet.ca.key_identifiers import identifier_of
from fleet.ca.keys import load_key
from fleet.domain.ca_role import ISSUES_TO_DEVICES, ROOTS
from fleet.domain.ports import CrlSigner
from fleet.home.authorities import key_of_root, read_authorities
from fleet.home.home_cas import home_cas
from fleet.home.layout import Home
from fleet.services.crl_publishing import CrlCa


def crl_authorities(home: Home) -> list[CrlCa]:
    """Every CA of `home` whose key is here: issuing CAs, those before a rollover, roots, the operators' CA."""
    found: dict[bytes, CrlCa] = {}
    for ca in home_cas(home, read_authorities(home)):
        if (key := ca.key_here) is not None:
            identifier = identifier_of(ca.certificate)
            is_sharded, is_root = ca.role in ISSUES_TO_DEVICES, ca.role in ROOTS
            found.setdefault(identifier, CrlCa(identifier, _signer(ca.certificate, key), urls_in, is_sharded, is_root))
    return list(found.values())


def root_that_publishes(home: Home) -> tuple[x509.Certificate, CrlCa]:
    """The fleet's root, and it as a CA whose CRL is as valid as is asked for.

    Raises: Refused (`root-key-away`). Invalid (`bad-key`, `key-exposed`).
    """
    root = read_authorities(home).own.root
    signer = LocalCrlSigner(root, key_of_root(home.root_key))
    return root, CrlCa(identifier_of(root), lambda: signer, urls_in, is_sharded=False)


def _signer(certificate: x509.Certificate, key: Path) -> Callable[[], CrlSigner]:
    return lambda: LocalCrlSigner(certificate, load_key(key))
