"""A file that relying parties fetch: a CRL or a CA certificate."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

CA_CERTIFICATE, CRL = "application/pkix-cert", "application/pkix-crl"
"""Media types (RFC 2585, 4; RFC 5280, 4.2.1.13 and 4.2.2.1)."""


@dataclass(frozen=True)
class PublishedFile:
    """DER, with its cache metadata."""

    body: bytes
    content_type: str
    modified_at: datetime
    fresh_for: timedelta
    """How long a cache may give it without asking again."""
    expires_at: datetime | None = None
    """A CRL's nextUpdate: no cache keeps it longer."""

    @cached_property
    def etag(self) -> str:
        """Of these bytes, quoted (RFC 9110, 8.8.3)."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'

    def fresh_seconds(self, now: datetime) -> int:
        """How long a cache may keep it from `now` on."""
        left = self.fresh_for if self.expires_at is None else min(self.fresh_for, self.expires_at - now)
        return max(0, int(left.total_seconds()))
