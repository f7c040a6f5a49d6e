"""A manifest over the API, in parts that the server accepts."""

import json
from collections.abc import Mapping
from typing import Any, cast

from fleet.client.client import Client
from fleet.client.manifest import PART_ROWS_MAX, PART_SIZE_MAX, ManifestImport
from fleet.domain.device import DeviceId
from fleet.domain.manifest import ManifestRow
from fleet.servers.admin.records.devices import MANIFEST_ROWS_MAX, MANIFEST_SIZE_MAX
from fleet.services.importing import Numbered


class Server:
    """Takes every row, and keeps what was sent."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        assert path == "/v1/manifest"
        self.bodies.append(body)
        return {"bulk": body["bulk"], "added": len(body["rows"]), "unchanged": 0, "refused": []}


def numbered(count: int, tags: int = 0) -> list[Numbered]:
    labels = tuple((f"k{n}", "x" * 250) for n in range(tags))
    return [Numbered(n, ManifestRow(DeviceId(f"m-{n}"), "cam", f"SN {n}", None, labels)) for n in range(count)]


def test_no_part_is_more_than_the_server_reads() -> None:
    assert PART_ROWS_MAX <= MANIFEST_ROWS_MAX
    for rows in (numbered(1200), numbered(600, tags=16), numbered(1), numbered(0)):
        server = Server()
        work = ManifestImport(cast(Client, server), "0123456789ab")
        assert work.take(rows) == []
        assert work.counts.added == len(rows)
        assert [row["line"] for body in server.bodies for row in body["rows"]] == [each.line for each in rows]
        for body in server.bodies:
            assert 0 < len(body["rows"]) <= PART_ROWS_MAX
            assert len(json.dumps(body)) <= PART_SIZE_MAX + 1024 <= MANIFEST_SIZE_MAX
