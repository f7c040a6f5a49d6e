"""Sizes in bytes as people write them."""

import click
import pytest

from fleet.cli.parameters import size_in_bytes

SIZE = size_in_bytes(64 * 1024**2)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("2048", 2_048),
        ("64KiB", 65_536),
        ("1MiB", 1_048_576),
        ("64 MiB", 67_108_864),
        (" 1mib ", 1_048_576),
        ("67108864", 67_108_864),
    ],
)
def test_read(text: str, size: int) -> None:
    assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize(
    "text",
    ["", "KiB", "1k", "64KB", "1M", "1.5MiB", "-1", "+1", "1e3", "0x10", "1_024", "٣", "1KiB1", "1TiB", "9" * 99],
)
def test_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a size: write bytes, or 64KiB, 1MiB\.|is too large"):
        SIZE.convert(text, None, None)


@pytest.mark.parametrize("text", ["67108865", "65537KiB", "65MiB", "1GiB"])
def test_too_large(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is too large: at most 64MiB"):
        SIZE.convert(text, None, None)
