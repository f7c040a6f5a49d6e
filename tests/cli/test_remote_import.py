"""A manifest from afar, in parts that the server reads."""

import json
from collections.abc import Mapping
from typing import Any, cast

from fleet.cli.https import Api
from fleet.cli.remote_admission import PART_ROWS_MAX, PART_SIZE_MAX, RemoteImporter
from fleet.domain.device import DeviceId
from fleet.domain.manifest import ManifestRow
from fleet.servers.admin.schemas import MANIFEST_ROWS_MAX, MANIFEST_SIZE_MAX
from fleet.services.importing import Counts, Numbered


class Door:
    """Takes every row, and keeps what was sent."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []

    def ask(self, method: str, path: str, body: Mapping[str, Any]) -> tuple[Any, str]:
        assert (method, path) == ("POST", "/v1/manifest")
        self.bodies.append(body)
        return {"bulk": body["bulk"], "added": len(body["rows"]), "unchanged": 0, "refused": []}, ""


def numbered(count: int, tags: int = 0) -> list[Numbered]:
    labels = tuple((f"k{n}", "x" * 250) for n in range(tags))
    return [Numbered(n, ManifestRow(DeviceId(f"m-{n}"), "cam", f"SN {n}", None, labels)) for n in range(count)]


async def test_no_part_is_more_than_the_server_reads() -> None:
    assert PART_ROWS_MAX <= MANIFEST_ROWS_MAX
    for rows in (numbered(1200), numbered(600, tags=16), numbered(1), numbered(0)):
        door, counts = Door(), Counts()
        assert await RemoteImporter(cast(Api, door), "0123456789ab", counts).take(rows) == []
        assert counts.added == len(rows)
        assert [row["line"] for body in door.bodies for row in body["rows"]] == [each.line for each in rows]
        for body in door.bodies:
            assert 0 < len(body["rows"]) <= PART_ROWS_MAX
            assert len(json.dumps(body)) <= PART_SIZE_MAX + 1024 <= MANIFEST_SIZE_MAX
