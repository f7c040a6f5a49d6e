"""Where the device's private keys are kept: in files, in a TPM 2.0, or in a PKCS#11 token. Standard library only.

A key in hardware is used through a provider of OpenSSL. `key.pem` in its slot is then a reference, in PEM: for a TPM
the key itself, wrapped by the TPM and usable in no other; for PKCS#11 the URI of the token's object. OpenSSL loads the
provider when a process starts, as `openssl.cnf` in the home says, which `OPENSSL_CONF` names.

A process that has loaded a provider signs with no key in a file: which it needs is decided before it starts.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from device_agent.errors import KeyStoreFailed
from device_agent.store.atomic_files import read_capped, write_atomically
from fleet.est_client.errors import BadConfig

FILE, TPM2, PKCS11 = "file", "tpm2", "pkcs11"
KEY_STORES = (FILE, TPM2, PKCS11)

CONF_NAME = "openssl.cnf"
CONF_SIZE_MAX = 16 * 1024  # bytes
_CONF, _TCTI, _TSS_LOG = "OPENSSL_CONF", "TPM2OPENSSL_TCTI", "TSS2_LOG"
_TCTI_DEFAULT = "device:/dev/tpmrm0"
_PACKAGES = {TPM2: "tpm2-openssl", PKCS11: "pkcs11-provider"}

_LABELS = {b"-----BEGIN TSS2 PRIVATE KEY-----": TPM2, b"-----BEGIN PKCS#11 PROVIDER URI-----": PKCS11}


@dataclass(frozen=True, slots=True)
class KeyStore:
    """Section [key] of agent.toml."""

    home: Path
    kind: str = FILE
    tcti: str = ""
    """How the TPM is reached, as tpm2-tss names it; "" for what TPM2OPENSSL_TCTI says, or "device:/dev/tpmrm0"."""
    uri: str = ""
    """PKCS#11 URI of the token (RFC 7512): "pkcs11:token=NAME?pin-source=file:/etc/pin"."""
    module: str = ""
    """Path of the token's PKCS#11 module."""

    @property
    def configuration(self) -> Path:
        """What OpenSSL reads."""
        return self.home / CONF_NAME


def openssl_value(text: str) -> str:
    """`text` itself, which OpenSSL's configuration takes as it stands. Raises: BadConfig."""
    if any(character in text for character in "\\$#\"'"):
        raise BadConfig("it has a quote, $, # or \\.", "Write it without.")
    return text


def token_uri(text: str) -> str:
    """`text` itself, the URI of a PKCS#11 token. Raises: BadConfig."""
    if not text.startswith("pkcs11:"):
        raise BadConfig(f"{text[:40]!r} is no PKCS#11 URI.", 'Write it as "pkcs11:token=NAME".')
    if "pin-value" in text.lower():
        raise BadConfig("a PIN in it would be seen by every user.", "Put it into a file: ?pin-source=file:/PATH.")
    return openssl_value(text)


def kind_of(key_pem: bytes) -> str:
    """The kind of store that the key in `key.pem` is kept in."""
    return _LABELS.get(key_pem.lstrip().partition(b"\n")[0].rstrip(), FILE)


def prepare(store: KeyStore) -> None:
    """Write `openssl.cnf` into the home, unless it is there as it should be. Raises: OSError."""
    if store.kind == FILE:
        return
    wanted = _configuration(store).encode()
    try:
        if read_capped(store.configuration, CONF_SIZE_MAX) == wanted:
            return
    except OSError:
        pass  # not there yet
    write_atomically(store.configuration, wanted)


def with_provider(store: KeyStore, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a program that is to use keys in hardware."""
    # tpm2-tss prints to standard error what OpenSSL reports, too.
    # Its own default is whatever it finds installed: tabrmd before the device.
    fresh = {_TSS_LOG: "all+NONE", _TCTI: _TCTI_DEFAULT} | dict(environment) | {_CONF: str(store.configuration)}
    return fresh | ({_TCTI: store.tcti} if store.tcti else {})


def without_provider(home: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a program that is to use keys in files: without the configuration that is of `home`."""
    is_ours = Path(environment.get(_CONF, "")).absolute() == home.absolute() / CONF_NAME
    return {name: value for name, value in environment.items() if name != _CONF or not is_ours}


def use_in_children(store: KeyStore) -> bool:
    """Let the programs that this one starts load the store's provider. Whether this one has no need of it, or has
    loaded it as well.

    Raises: BadConfig if the home is enrolled with a key of another store; OSError.
    """
    for certificate in store.home.glob("slot-*/cert.pem"):
        try:
            pem = read_capped(certificate.with_name("key.pem"), CONF_SIZE_MAX)
        except OSError:
            continue  # a damaged slot is an empty one
        kind = kind_of(pem)
        if kind != store.kind and b"-----BEGIN " in pem:
            raise BadConfig(
                f"{store.home} is enrolled with a key of the key store {kind!r}, and key.store is {store.kind!r}.",
                "Set it back in agent.toml, or make a new home.",
            )
    if store.kind == FILE:
        return True
    prepare(store)
    wanted = with_provider(store, os.environ)
    is_loaded = wanted == dict(os.environ)
    os.environ.update(wanted)
    return is_loaded


def use_here(store: KeyStore) -> None:
    """Let this program and those that it starts load the store's provider: it is started once more, if it must be.

    Raises: BadConfig; KeyStoreFailed if OpenSSL's provider is not installed; OSError.
    """
    if not use_in_children(store):
        must_have_provider(store)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell


def must_have_provider(store: KeyStore) -> None:
    """Raises: KeyStoreFailed if OpenSSL's provider for this store is not installed."""
    module = _module(store.kind)
    if module is not None and not module.is_file():
        raise KeyStoreFailed(
            f"OpenSSL's provider {store.kind!r} is missing: {module} is not there.",
            f"Install the package {_PACKAGES[store.kind]}.",
        )


def _module(kind: str) -> Path | None:
    """Where OpenSSL looks for the provider; None if it does not say."""
    folder = os.environ.get("OPENSSL_MODULES", "")
    if not folder:
        clean = {name: value for name, value in os.environ.items() if name != _CONF}
        try:
            words = ["openssl", "version", "-m"]
            shown = subprocess.run(words, capture_output=True, text=True, env=clean, check=False)
        except FileNotFoundError:
            return None
        folder = shown.stdout.partition('"')[2].partition('"')[0]
    return Path(folder) / f"{kind}.so" if folder else None


def _configuration(store: KeyStore) -> str:
    lines = [f"pkcs11-module-path = {store.module}"] if store.module else []
    if store.kind == PKCS11:
        lines.append("pkcs11-module-encode-provider-uri-to-pem = true")
    return _TEMPLATE.format(provider=store.kind, settings="".join(f"{line}\n" for line in lines))


_TEMPLATE = """\
# Made by device-agent from [key] of agent.toml, and made again when that changes.
openssl_conf = agent

[agent]
providers = providers
alg_section = algorithms

[algorithms]
# Keys are the provider's; hashes and ciphers are OpenSSL's own, which are faster.
default_properties = ?provider={provider},{provider}.digest!=yes,{provider}.cipher!=yes

[providers]
default = software
{provider} = hardware

[software]
activate = 1

[hardware]
{settings}activate = 1
"""
