"""Importing a manifest over the API, in parts that the server accepts; sending a part again changes nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.client.client import Client, bad_answer
from fleet.services.importing import Counts, Numbered, RowRefused

PATH = "/v1/manifest"
PART_ROWS_MAX = 500
PART_SIZE_MAX = 512 * 1024  # half of what the server reads

Json = Mapping[str, Any]


@dataclass(slots=True)
class ManifestImport:
    """One import: `bulk` ties its audit rows together."""

    client: Client
    bulk: str
    counts: Counts = field(default_factory=Counts)

    def take(self, chunk: Sequence[Numbered]) -> list[RowRefused]:
        """Register the devices of these rows, durably when this returns; the rows that were refused.

        Raises: FleetError; rows taken before it stay taken, and are recognized when they are sent again.
        """
        refused: list[RowRefused] = []
        for part in _parts(chunk):
            answer = self.client.post(PATH, {"bulk": self.bulk, "rows": part})
            try:
                rejected = [RowRefused(v["line"], v["device_id"], v["code"], v["message"]) for v in answer["refused"]]
                self.counts.added += int(answer["added"])
                self.counts.unchanged += int(answer["unchanged"])
            except (KeyError, TypeError, ValueError):
                raise bad_answer("the answer to an import cannot be read") from None
            self.counts.refused += len(rejected)
            refused += rejected
        return refused


def _parts(chunk: Sequence[Numbered]) -> Iterator[list[Json]]:
    part: list[Json] = []
    size = 0
    for each in chunk:
        value = _row(each)
        length = len(json.dumps(value)) + 2
        if part and (len(part) == PART_ROWS_MAX or size + length > PART_SIZE_MAX):
            yield part
            part, size = [], 0
        part.append(value)
        size += length
    if part:
        yield part


def _row(each: Numbered) -> Json:
    row = each.row
    return {
        "line": each.line,
        "device_id": row.device_id,
        "model": row.model,
        "hardware_serial": row.hardware_serial,
        "key_sha256": row.key_sha256.hex() if row.key_sha256 is not None else "",
        "tags": dict(row.tags),
        "groups": list(row.groups),
    }
