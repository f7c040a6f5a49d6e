"""Creation of a home: built in a temporary folder beside its path and renamed, so that it is complete or absent."""

from datetime import datetime
from pathlib import Path

from fleet.config.settings import Settings
from fleet.config.template import render
from fleet.domain.access import Act
from fleet.domain.device import Model
from fleet.domain.errors import Conflict
from fleet.home.layout import Home, new_home, place_for, revocation_journal, sync_tree
from fleet.home.pki import write_authorities
from fleet.home.unix_user import unix_user
from fleet.services.inventory import add_model
from fleet.storage.engines import RegistryLocation, open_engine


async def create_home(path: Path, settings: Settings, now: datetime) -> Home:
    """Make a new home at `path`: settings, CAs, server certificate, registry with a model named "default".

    Raises: Conflict (`home-exists`): `path` exists already and is left unchanged.
    """
    with new_home(path) as building:
        write_authorities(building, settings, now)
        building.settings_file.write_text(render(settings))
        building.settings_file.chmod(0o600)  # whatever the umask: open_home refuses a home that others can write to
        building.run.mkdir(mode=0o700)
        await _make_registry(place_for(building, settings.database), now)
        revocation_journal(building).mark(newest=0)  # a home that lacks one has lost it
        sync_tree(building.path)
    return Home(path)


async def _make_registry(place: RegistryLocation, now: datetime) -> None:
    """An empty registry with a model named "default".

    Raises: Conflict (`registry-exists`): there is one already, of a fleet with other CAs.
    """
    registry = await open_engine(place)
    try:
        if await registry.last_audit():
            raise Conflict(
                "registry-exists",
                f"There is a fleet's registry in {place} already; nothing was changed.",
                "Name another database. For a second node of that fleet, copy its home.",
            )
        await add_model(registry, Model("default"), act=Act(unix_user(), now))
    finally:
        await registry.close()
