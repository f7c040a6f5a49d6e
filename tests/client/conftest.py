"""A fleet's home to open in process."""

from tests.cli.conftest import empty_home, home

__all__ = ["empty_home", "home"]
