"""The page's table of platforms is what pip says; a wheel's tags are those of its platform."""

from pathlib import Path

import pytest

from tests.packages.platforms import PLATFORMS, NoAnswer, Platform, requirements, table

PAGE = Path(__file__).parents[2] / "device_agent" / "README.md"


def test_tags() -> None:
    assert Platform("", "armv7l", "manylinux", 6).tags() == [
        "manylinux_2_6_armv7l", "manylinux_2_5_armv7l", "manylinux2014_armv7l", "linux_armv7l"
    ]  # fmt: skip
    assert Platform("", "x86_64", "musllinux", 2).tags() == [
        "musllinux_1_2_x86_64", "musllinux_1_1_x86_64", "linux_x86_64"
    ]  # fmt: skip


def test_a_device_needs_no_more_than_this() -> None:
    assert set(requirements(("agent",))) == {"click", "cryptography", "cffi", "pycparser", "paho-mqtt"}


def test_the_page_has_every_platform() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert all(any(row.startswith(f"| {platform.name} | ") for row in rows) for platform in PLATFORMS)


@pytest.mark.long
def test_the_table_on_the_page_is_current() -> None:
    try:
        found = table()
    except NoAnswer as error:
        pytest.skip(str(error))
    assert found in PAGE.read_text(), found
