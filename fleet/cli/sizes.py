"""Sizes on the command line: bytes, or 64KiB, 1MiB."""

import re

from fleet.cli.options import Checked

_UNITS = {"": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def size_in_bytes(maximum: int) -> Checked:
    """A number of bytes, at most `maximum`."""

    def read(given: str) -> int:
        found = re.fullmatch(r"([0-9]{1,20}) ?((?:[kmg]ib)?)", given.strip().lower())
        if found is None:
            raise ValueError(f"{given[:40]!r} is not a size: write bytes, or 64KiB, 1MiB.")
        size = int(found[1]) * _UNITS[found[2]]
        if size > maximum:
            raise ValueError(f"{given[:40]!r} is too large: at most {size_text(maximum)}.")
        return size

    return Checked("size", read)


def size_text(size: int) -> str:
    """`size` as it is written on the command line: "64KiB"; in bytes where no unit divides it."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _UNITS[unit.lower()] == 0:
            return f"{size // _UNITS[unit.lower()]}{unit}"
    return str(size)
