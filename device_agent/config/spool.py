"""Section [spool] of agent.toml."""

from dataclasses import dataclass
from typing import Any

from fleet.est_client.errors import BadConfig

DROPS = ("newest", "oldest")
_NUMBERS = {"bytes_max": (1024 * 1024, 2**36), "age_max_seconds": (1, 10 * 365 * 86400)}


@dataclass(frozen=True, slots=True)
class SpoolConfig:
    enabled: bool = False
    """Whether accepted messages are stored in the home, and survive the process."""
    bytes_max: int = 16 * 1024 * 1024
    age_max_seconds: float = 7 * 86400
    drop: str = "newest"
    """What gives way when the spool is full: one of DROPS."""


NO_SPOOL = SpoolConfig()


def read_spool(file: str, section: Any) -> SpoolConfig:
    """Raises: BadConfig, naming the key."""
    if not isinstance(section, dict):
        raise BadConfig(f"{file}: spool must be a section, [spool].")
    for key, value in section.items():
        where = f"{file}: spool.{key}"
        if key in _NUMBERS:
            least, most = _NUMBERS[key]
            kind = int if key == "bytes_max" else int | float
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
                raise BadConfig(f"{where} must be a number from {least} to {most}.")
        elif key == "enabled":
            if not isinstance(value, bool):
                raise BadConfig(f"{where} must be true or false.")
        elif key == "drop":
            if value not in DROPS:
                raise BadConfig(f'{where} must be "{DROPS[0]}" or "{DROPS[1]}".')
        else:
            raise BadConfig(f"{file}: there is no setting 'spool.{key}'.", "Check its spelling and its [section].")
    return SpoolConfig(**section)
