"""The CAs of a home that publish CRLs."""

from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from fleet.ca.crl import LocalCrlSigner, key_identifier_of
from fleet.ca.keys import load_key
from fleet.domain.ports import CrlSigner
from fleet.home.authorities import key_of_root, read_authorities
from fleet.home.ca_store import FORMER, Authority, fingerprint
from fleet.home.layout import Home, certificate_in
from fleet.services.crl_publishing import CrlCa


def crl_authorities(home: Home) -> list[CrlCa]:
    """Every CA of `home` whose key is here: issuing CAs, those before a rollover, roots, the operators' CA."""
    found: dict[bytes, CrlCa] = {}
    for certificate, key, is_issuing in _authorities(home):
        if key.exists():
            identifier = key_identifier_of(certificate)
            is_root = certificate.subject == certificate.issuer
            found.setdefault(identifier, CrlCa(identifier, _signer(certificate, key), is_issuing, is_root))
    return list(found.values())


def root_that_publishes(home: Home) -> tuple[x509.Certificate, CrlCa]:
    """The fleet's root, and it as a CA whose CRL is as valid as is asked for.

    Raises: Refused (`root-key-away`). Invalid (`bad-key`, `key-exposed`).
    """
    root = read_authorities(home).own.root
    signer = LocalCrlSigner(root, key_of_root(home.root_key))
    return root, CrlCa(key_identifier_of(root), lambda: signer, is_sharded=False)


def _signer(certificate: x509.Certificate, key: Path) -> Callable[[], CrlSigner]:
    return lambda: LocalCrlSigner(certificate, load_key(key))


def _authorities(home: Home) -> list[tuple[x509.Certificate, Path, bool]]:
    """Certificate, key file, and whether it issues to devices; the present ones first."""
    known = read_authorities(home)
    found: list[tuple[x509.Certificate, Path, bool]] = []
    for each in known.all:
        folder = each.key_file.parent
        found.append((each.issuing, each.key_file, True))
        found += [(former, folder / FORMER / f"{fingerprint(former)}.key", True) for former in each.former]
    found += [place for each in known.all for place in _roots(home, each, is_own=not each.tenant)]
    if home.operators_certificate.exists():
        found.append((certificate_in(home.operators_certificate), home.operators_key, False))
    return found


def _roots(home: Home, authority: Authority, *, is_own: bool) -> list[tuple[x509.Certificate, Path, bool]]:
    folder = home.ca if is_own or not (authority.key_file.parent / "root.pem").exists() else authority.key_file.parent
    found = [(authority.root, folder / "root.key", False)]
    return found + [(former.certificate, former.key_file, False) for former in authority.former_roots]
