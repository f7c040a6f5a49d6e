"""Public keys that heads of the audit are signed by, in files."""

from pathlib import Path

from fleet.ca.head_signer import HEAD_KEY_SIZE_MAX, HeadKey, read_head_key
from fleet.cli.errors import attempting


def head_key_in(file: Path) -> HeadKey:
    """The key in `file`, PEM."""
    with file.open("rb") as opened_file, attempting(f"reading the public key '{file}'"):
        return read_head_key(opened_file.read(HEAD_KEY_SIZE_MAX))
