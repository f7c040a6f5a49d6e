"""Certificates, keys, requests and revocation lists in the files that people exchange: recognize, read, write.

bundle = read(path.read_bytes(), password=b"secret")
path.write_bytes(write(bundle, Form.P7B, drop=True))
"""

from fleet.wire.encodings.bundle import (
    FORM_BY_SUFFIX,
    INPUT_SIZE_MAX,
    Bundle,
    Form,
    PasswordNeeded,
    WouldLose,
    WrongPassword,
    belongs_to,
)
from fleet.wire.encodings.reading import read
from fleet.wire.encodings.recognize import Content, recognize
from fleet.wire.encodings.writing import has_room_for_key, holds_secret, losses, write

__all__ = [
    "FORM_BY_SUFFIX",
    "INPUT_SIZE_MAX",
    "Bundle",
    "Content",
    "Form",
    "PasswordNeeded",
    "WouldLose",
    "WrongPassword",
    "belongs_to",
    "has_room_for_key",
    "holds_secret",
    "losses",
    "read",
    "recognize",
    "write",
]
