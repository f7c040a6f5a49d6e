"""Section [spool] of agent.toml: its values are settings.py's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    enabled: bool = False
    """Whether accepted messages are stored in the home, and survive the process."""
    bytes_max: int = 16 * 1024 * 1024
    age_max_seconds: float = 7 * 86400
    drop: str = "newest"
    """What gives way when the spool is full: the newest, or the oldest."""


NO_SPOOL = SpoolConfig()
