"""Claims, makers' CAs and manifests from afar."""

import asyncio
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.cli.https import Api
from fleet.cli.issued import Issued
from fleet.cli.told import anchor_from, claim_from, read_as
from fleet.domain.claim import Claim
from fleet.domain.device import plain_name
from fleet.domain.idevid import Anchor
from fleet.services.importing import Counts, Numbered, RowRefused

_PAGE = "limit=1000"
PART_ROWS_MAX = 500
PART_SIZE_MAX = 512 * 1024  # half of what the server reads

Json = Mapping[str, Any]


def claims_of(api: Api) -> list[Claim]:
    return [claim_from(value) for value in api.items(f"/v1/claims?{_PAGE}")]


def claim_of(api: Api, name: str) -> tuple[Claim, list[Json]]:
    """The claim, and its certificates as the API tells them."""
    path = f"/v1/claims/{quote(name, safe='')}"
    return claim_from(api.ask("GET", path)[0]), list(api.items(f"{path}/credentials?{_PAGE}"))


def add_claim(api: Api, name: str, model: str, quota: int, csr_der: bytes, lifetime: timedelta) -> tuple[Claim, Issued]:
    body = {
        "name": plain_name(name, "claim"),
        "model": model,
        "quota": quota,
        "csr": x509.load_der_x509_csr(csr_der).public_bytes(Encoding.PEM).decode(),
        "lifetime_seconds": int(lifetime.total_seconds()),
    }
    made = api.ask("POST", "/v1/claims", body)[0]
    return claim_from(made), Issued(tuple(x509.load_pem_x509_certificates(made["chain"].encode())))


def move_claim(api: Api, verb: str, name: str, reason: str) -> None:
    api.ask("POST", f"/v1/claims/{quote(name, safe='')}/{verb}", {"reason": reason})


def anchors_of(api: Api) -> list[Anchor]:
    return [anchor_from(value) for value in api.items(f"/v1/anchors?{_PAGE}")]


def add_anchor(api: Api, name: str, models: tuple[str, ...], data: bytes) -> Anchor:
    text = data.decode("ascii", "replace") if b"-----BEGIN" in data else ssl.DER_cert_to_PEM_cert(data)
    body = {"name": plain_name(name, "maker's CA"), "models": list(models), "certificate": text}
    return anchor_from(api.ask("POST", "/v1/anchors", body)[0])


def remove_anchor(api: Api, name: str, reason: str) -> None:
    api.ask("POST", f"/v1/anchors/{quote(name, safe='')}/remove", {"reason": reason})


class RemoteImporter:
    """Takes the rows of a manifest part by part: each is one request, and can be sent again."""

    def __init__(self, api: Api, bulk: str, counts: Counts) -> None:
        self._api = api
        self._bulk = bulk
        self._counts = counts

    async def take(self, chunk: Sequence[Numbered]) -> list[RowRefused]:
        """Raises: FleetError; what was taken before it stays, and is known when it comes again."""
        refused: list[RowRefused] = []
        for part in _parts(chunk):
            body = {"bulk": self._bulk, "rows": part}
            told, _ = await asyncio.to_thread(self._api.ask, "POST", "/v1/manifest", body)
            added, unchanged, out = read_as(_taken, told)
            self._counts.added += added
            self._counts.unchanged += unchanged
            self._counts.refused += len(out)
            refused += out
        return refused


def _taken(value: Json) -> tuple[int, int, list[RowRefused]]:
    out = [RowRefused(v["line"], v["device_id"], v["code"], v["message"]) for v in value["refused"]]
    return int(value["added"]), int(value["unchanged"]), out


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
