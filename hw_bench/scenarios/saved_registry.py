"""A filled registry kept between runs: filling takes most of the time."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hw_bench.drivers.fill import FilledFleet, Sizes
from hw_bench.processes import BenchError


@dataclass(frozen=True, slots=True)
class SavedRegistry:
    """A folder with a home, its engine's data, and a manifest that is written last."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "full"

    @property
    def engine(self) -> Path:
        return self.folder / "postgres"

    @property
    def _manifest(self) -> Path:
        return self.folder / "filled.json"

    def begin(self, engine: str, devices: int) -> tuple[FilledFleet, Sizes] | None:
        """What an earlier run saved; None, with the folder created, when it is new.

        Raises: BenchError when the folder holds anything else.
        """
        try:
            manifest = json.loads(self._manifest.read_text("utf-8"))
            there, count = str(manifest["engine"]), int(manifest["devices"])
            enrolled_by = datetime.fromtimestamp(manifest["enrolled_by"], UTC)
            fleet, sizes = (
                FilledFleet(count, bytes.fromhex(manifest["certificate"]), enrolled_by),
                Sizes(**manifest["sizes"]),
            )
        except FileNotFoundError:
            self._make()
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{self._manifest} cannot be read: {error!r}.") from error
        if (there, count) != (engine, devices):
            raise BenchError(
                f"{self.folder} holds {count:,} devices in {there}, not {devices:,} in {engine}: "
                f"pass --devices {count} --database {there}, or choose another folder."
            )
        return fleet, sizes

    def _make(self) -> None:
        try:
            self.folder.mkdir(mode=0o711, exist_ok=True)
            if any(self.folder.iterdir()):
                raise BenchError(f"{self.folder} is not empty and holds no complete registry. Choose a new folder.")
        except OSError as error:
            raise BenchError(f"{self.folder} cannot be used: {error.strerror}.") from error

    def done(self, engine: str, fleet: FilledFleet, sizes: Sizes) -> None:
        """Write the manifest: the registry is complete and can be measured again."""
        manifest = {
            "engine": engine,
            "devices": fleet.count,
            "certificate": fleet.der.hex(),
            "enrolled_by": int(fleet.enrolled_by.timestamp()),
            "sizes": asdict(sizes),
        }
        self._manifest.write_text(json.dumps(manifest), "utf-8")
