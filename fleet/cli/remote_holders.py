"""Stations, operators and CAs from afar: a key is made here, and its certificate request is all that travels."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.ca.view import CaCertificate
from fleet.cli.https import Api
from fleet.cli.issued import Issued, Newest
from fleet.cli.told import time_from
from fleet.domain.access import Operator, Role
from fleet.domain.credential import CredentialState, Station
from fleet.domain.device import plain_name

_PAGE = "limit=1000"

Json = Mapping[str, Any]


def stations_of(api: Api) -> list[tuple[Station, Newest | None]]:
    found = api.items(f"/v1/stations?{_PAGE}")
    return [(_station(v), _newest(v)) for v in found]


def _station(v: Json) -> Station:
    return Station(v["name"], tuple(v["models"]), time_from(v["created_at"]), v["quota"], v["day"], v["used"])


def add_station(
    api: Api, name: str, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta, quota: int
) -> Issued:
    body = {"name": plain_name(name, "station"), "models": list(models), "quota": quota, **_asked(csr_der, lifetime)}
    return _issued(api.ask("POST", "/v1/stations", body)[0])


def set_station_quota(api: Api, name: str, quota: int) -> Station:
    return _station(api.ask("PATCH", f"/v1/stations/{quote(name, safe='')}", {"quota": quota})[0])


def revoke_station(api: Api, name: str, reason: str) -> None:
    api.ask("POST", f"/v1/stations/{quote(name, safe='')}/revoke", {"reason": reason})


def operators_of(api: Api) -> list[tuple[Operator, Newest | None]]:
    return [_operator(value) for value in api.items(f"/v1/operators?{_PAGE}")]


def operator_of(api: Api, name: str) -> tuple[Operator, Newest | None]:
    return _operator(api.ask("GET", f"/v1/operators/{quote(name, safe='')}")[0])


def add_operator(
    api: Api, name: str, role: Role, models: tuple[str, ...], csr_der: bytes, lifetime: timedelta
) -> Issued:
    body = {"name": name, "role": role.value, "models": list(models), **_asked(csr_der, lifetime)}
    return _issued(api.ask("POST", "/v1/operators", body)[0])


def revoke_operator(api: Api, name: str, reason: str) -> None:
    api.ask("POST", f"/v1/operators/{quote(name, safe='')}/revoke", {"reason": reason})


def authorities_of(api: Api) -> list[CaCertificate]:
    found = api.items("/v1/authorities")
    return [CaCertificate(v["role"], x509.load_pem_x509_certificate(v["pem"].encode()), v["tenant"]) for v in found]


def _asked(csr_der: bytes, lifetime: timedelta) -> dict[str, Any]:
    pem = x509.load_der_x509_csr(csr_der).public_bytes(Encoding.PEM).decode()
    return {"csr": pem, "lifetime_seconds": int(lifetime.total_seconds())}


def _issued(value: Json) -> Issued:
    return Issued(tuple(x509.load_pem_x509_certificates(value["chain"].encode())))


def _operator(value: Json) -> tuple[Operator, Newest | None]:
    models = tuple(value["models"])
    return Operator(value["name"], Role(value["role"]), time_from(value["created_at"]), models), _newest(value)


def _newest(value: Json) -> Newest | None:
    if value["serial"] is None:
        return None
    return Newest(value["serial"], CredentialState(value["certificate"]), time_from(value["not_after"]))
