"""Enrollment by a factory's station."""

from fleet.domain.credential import DAY_SECONDS, Credential, Station, day_of
from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused, TooMany
from fleet.domain.grants.base import FirstGrant
from fleet.domain.issuance_context import IssuanceContext, issued_before
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import SpendStation, Write, use_of


class StationGrant(FirstGrant, frozen=True):
    """Grant by a factory station that authenticated with its own certificate."""

    station: Station
    model: str
    """The model that the label names, "" for none; needed for a new device when the station has several."""
    credential: Credential
    """The station's certificate."""

    path = AdmissionPath.STATION
    word = "station"

    def __str__(self) -> str:
        return f"{self.word} {self.station.name}"

    def model_for_new_device(self, device_id: DeviceId) -> str:
        if self.model:
            return self.model
        if len(self.station.models) == 1:
            return self.station.models[0]
        raise Refused(
            "model-not-named",
            "The station provisions several models, and the device is new.",
            "Name the model as the label: /.well-known/est/MODEL/simpleenroll.",
        )

    def must_be_valid(self, a: IssuanceContext) -> None:
        """`identify` has checked the station's certificate."""
        if self.station.quota and self.station.used_on(a.now) >= self.station.quota and issued_before(a) is None:
            raise TooMany(
                "station-quota",
                f"Station {self.station.name} has used its quota of {self.station.quota} certificates a day (UTC).",
                f"Wait for the next day, or allow more: fleet station set {self.station.name} --quota N",
                retry_after_seconds=DAY_SECONDS - int(a.now.timestamp()) % DAY_SECONDS,
            )

    def must_cover_device(self, a: IssuanceContext) -> None:
        if a.model.name not in self.station.models:
            raise Refused("not-your-model", f"Station {self.station.name} may not provision model {a.model.name}.")

    def would_take_over(self, a: IssuanceContext) -> bool:
        """A station may repeat its own run if the certificate was never used."""
        return a.is_in_the_field() or any(c.grant != str(self) for c in a.credentials)

    def writes(self, a: IssuanceContext) -> tuple[Write, ...]:
        used = use_of(self.credential)  # a Conflict when it has been revoked since we looked
        # Counted only with a quota: otherwise concurrent requests need not wait for the station's row.
        return (used, SpendStation(self.station.name, day_of(a.now))) if self.station.quota else (used,)
