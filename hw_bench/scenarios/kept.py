"""A filled registry that outlives its run: filling takes most of the time, and can be done once."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hw_bench.drivers.fill import FilledFleet, Sizes
from hw_bench.processes import BenchError


@dataclass(frozen=True, slots=True)
class Kept:
    """A folder of the engineer's: a home, what its engine has of its own, and a note, written last."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "full"

    @property
    def engine(self) -> Path:
        return self.folder / "postgres"

    @property
    def _note(self) -> Path:
        return self.folder / "filled.json"

    def begin(self, engine: str, devices: int) -> tuple[FilledFleet, Sizes] | None:
        """What an earlier run has left, or None where nothing is yet: the folder is made.

        Raises: BenchError when there is something else.
        """
        try:
            note = json.loads(self._note.read_text("utf-8"))
            there, count = str(note["engine"]), int(note["devices"])
            enrolled_by = datetime.fromtimestamp(note["enrolled_by"], UTC)
            fleet, sizes = FilledFleet(count, bytes.fromhex(note["der"]), enrolled_by), Sizes(**note["sizes"])
        except FileNotFoundError:
            self._make()
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{self._note} cannot be read: {error!r}.") from error
        if (there, count) != (engine, devices):
            raise BenchError(
                f"{self.folder} holds {count:,} devices in {there}, not {devices:,} in {engine}: "
                f"say --devices {count} --database {there}, or name another folder."
            )
        return fleet, sizes

    def _make(self) -> None:
        try:
            self.folder.mkdir(mode=0o711, exist_ok=True)
            if any(self.folder.iterdir()):
                raise BenchError(f"{self.folder} holds no registry that was filled to its end. Name a new folder.")
        except OSError as error:
            raise BenchError(f"{self.folder} cannot be used: {error.strerror}.") from error

    def done(self, engine: str, fleet: FilledFleet, sizes: Sizes) -> None:
        """From here on it can be measured again."""
        note = {
            "engine": engine,
            "devices": fleet.count,
            "der": fleet.der.hex(),
            "enrolled_by": int(fleet.enrolled_by.timestamp()),
            "sizes": asdict(sizes),
        }
        self._note.write_text(json.dumps(note), "utf-8")
