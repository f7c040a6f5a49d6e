"""A private key in a TPM or a PKCS#11 token: generated there, and used by the program `openssl`. Needs `cryptography`.

`cryptography` brings an OpenSSL of its own, which loads no provider: it signs through `HardwareKey.sign`.
"""

import os
import shlex
import shutil
import subprocess
from base64 import b64decode
from secrets import token_hex
from typing import Any, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from device_agent.errors import KeyStoreFailed
from device_agent.store.key_store import PKCS11, TPM2, KeyStore, kind_of, must_have_provider, prepare, with_provider
from fleet.est_client.errors import BadConfig

CALL_SECONDS_MAX = 60.0
"""For one call of `openssl`: a TPM may take seconds for each command."""
_GROUPS = {"EC-P256": "P-256", "EC-P384": "P-384"}


class KeyOfAnother(KeyStoreFailed):
    """The key is not in this TPM or token."""


class HardwareKey(ec.EllipticCurvePrivateKey):
    """A key that never leaves its hardware. `pem` is the reference to it."""

    def __init__(self, pem: bytes, store: KeyStore) -> None:
        """Raises: KeyOfAnother, KeyStoreFailed, OSError; ValueError if `pem` is damaged."""
        if kind_of(pem) != store.kind:
            raise KeyOfAnother(f"The key is of the key store {kind_of(pem)!r}.", OTHER_STORE_ADVICE)
        _must_be_whole(pem)
        prepare(store)
        self.pem, self._store = pem, store
        try:
            public = load_pem_public_key(_openssl(store, ["pkey", "-pubout"], pem))
        except KeyStoreFailed:
            check(store)  # it does not answer, and says why
            name = _name(store)
            raise KeyOfAnother(
                f"The key does not belong to this {name}: another one made it, or the {name} has been cleared.",
                "Enroll again with a new token: the key cannot be recovered.",
            ) from None
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise KeyStoreFailed("The key in the key store is not one of an elliptic curve.")
        self._public = public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """DER of an ECDSA signature. Raises: KeyStoreFailed."""
        algorithm = signature_algorithm.algorithm
        assert not isinstance(algorithm, Prehashed)  # noqa: S101 - nothing here hashes by itself
        digest = hashes.Hash(algorithm)
        digest.update(bytes(data))
        words = ["pkeyutl", "-sign", "-pkeyopt", f"digest:{algorithm.name}", "-inkey", "/dev/fd/{key}"]
        return _openssl(self._store, words, digest.finalize(), key=self.pem)

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise KeyStoreFailed("A device's key signs, and agrees on no secret.")

    def private_numbers(self) -> NoReturn:
        raise KeyStoreFailed(NOT_EXPORTED, EXPORT_ADVICE)

    def private_bytes(self, *_: Any, **__: Any) -> NoReturn:
        raise KeyStoreFailed(NOT_EXPORTED, EXPORT_ADVICE)

    def __copy__(self) -> "HardwareKey":
        return self

    def __deepcopy__(self, memo: Any) -> "HardwareKey":
        return self


OTHER_STORE_ADVICE = (
    "Set key.store back in agent.toml, or make a new home: a device keeps the key store it is enrolled with."
)
NOT_EXPORTED = "The key is in the key store, which does not give it away: it cannot be copied"
EXPORT_ADVICE = "Copy the certificate alone, and let the program load current/key.pem through OpenSSL's provider."


def generate(store: KeyStore, key_type: str) -> HardwareKey:
    """A new key in the store; its other keys are as they were.

    Raises: BadConfig for a type of key that is not generated there; KeyStoreFailed, OSError.
    """
    group = _GROUPS.get(key_type)
    if group is None:
        raise BadConfig(
            f"Keys of type {key_type[:40]!r} cannot be generated in the key store.", f"Use one of {', '.join(_GROUPS)}."
        )
    words = ["genpkey", "-algorithm", "EC", "-pkeyopt", f"group:{group}"]
    if store.kind == PKCS11:
        words += ["-pkeyopt", f"pkcs11_uri:{_object_uri(store.uri)}"]
    prepare(store)
    pem = _openssl(store, words, b"")
    if kind_of(pem) != store.kind:  # OpenSSL without the provider makes one in memory, which is not asked for
        raise _why(store, "")
    return HardwareKey(pem, store)


def check(store: KeyStore) -> None:
    """Raises: KeyStoreFailed if the store does not answer; OSError."""
    prepare(store)
    _openssl(store, ["list", "-providers", "-provider", store.kind], b"")


def _must_be_whole(pem: bytes) -> None:
    """Raises: ValueError unless `pem` holds one DER value, to its last octet."""
    first, *lines = pem.strip().splitlines()
    if not lines or lines.pop() != first.replace(b"BEGIN", b"END"):
        raise ValueError("a PEM block without an end")
    der = b64decode(b"".join(lines), validate=True)
    length, header = der[1:2], 2
    if length and length[0] & 0x80:
        header += length[0] & 0x7F
        length = der[2:header]
    if len(der) != header + int.from_bytes(length):
        raise ValueError("no DER value")


def _object_uri(token_uri: str) -> str:
    """The URI of a new object: never that of a key in use."""
    path, _, query = token_uri.partition("?")
    separator = "" if path.endswith(":") else ";"
    return f"{path}{separator}object=device-agent-{token_hex(8)}{f'?{query}' if query else ''}"


def _openssl(store: KeyStore, words: list[str], data: bytes, *, key: bytes | None = None) -> bytes:
    """What `openssl` prints, given `data` as standard input, and `key` as the file "/dev/fd/{key}".

    Raises: KeyStoreFailed.
    """
    program = shutil.which("openssl")
    if program is None:
        raise KeyStoreFailed("The program openssl, which uses the key store, is not installed.", "Install openssl.")
    file = None if key is None else _in_memory(key)
    try:
        done = subprocess.run(
            [program, *(word.format(key=file) for word in words)],
            input=data,
            capture_output=True,
            pass_fds=() if file is None else (file,),
            env=with_provider(store, os.environ),
            timeout=CALL_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KeyStoreFailed(f"The {_name(store)} has not answered within {CALL_SECONDS_MAX:g} seconds.") from None
    finally:
        if file is not None:
            os.close(file)
    if done.returncode != 0:
        raise _why(store, done.stderr.decode(errors="replace"))
    return done.stdout


def _in_memory(data: bytes) -> int:
    descriptor = os.memfd_create("key", 0)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _why(store: KeyStore, text: str) -> KeyStoreFailed:
    """The cause, as far as OpenSSL's errors tell it."""
    try:
        must_have_provider(store)
    except KeyStoreFailed as missing:
        return missing
    name = _name(store)
    lines = [line for line in text.splitlines() if ":error:" in line]
    reason = lines[-1].rpartition(":error:")[2].split(":")[3:4] if lines else []
    return KeyStoreFailed(
        f"The {name} cannot be used{f': {reason[0].strip()}' if reason else ''}.",
        f"Check [key] in agent.toml, and that this user may use the {name}. What OpenSSL says: {_trial(store)}",
    )


def _trial(store: KeyStore) -> str:
    """A command that loads the provider alone, and prints why it does not load."""
    tcti = f"TPM2OPENSSL_TCTI={shlex.quote(store.tcti)} " if store.tcti else ""
    return f"{tcti}OPENSSL_CONF={shlex.quote(str(store.configuration))} openssl list -providers"


def _name(store: KeyStore) -> str:
    return "TPM" if store.kind == TPM2 else "PKCS#11 token"
