"""The outbox of a home, with its spool or in memory, by its settings."""

from collections.abc import Callable

from device_agent.config.agent_config import AgentConfig
from device_agent.log.event_log import EventLog
from device_agent.spool.database import Database
from device_agent.spool.outbox import Bounds, Outbox
from device_agent.spool.rejected import RejectedMessages
from device_agent.spool.saved_filters import SavedFilters
from device_agent.spool.spool_clock import Reading, SpoolClock
from device_agent.spool.stored_inbox import StoredInbox

_ROW_SIZE_LEAST = 128  # bytes of the smallest message in the file: what bounds is bytes and age


class Spool:
    """What a home keeps of its messages. With the spool off, `database` is None and all is in memory. `read` reads the
    device's clock."""

    def __init__(
        self, config: AgentConfig, log: EventLog, read: Callable[[], Reading], monotonic: Callable[[], float]
    ) -> None:
        self._now = now = SpoolClock(read, monotonic)
        self._read = read
        self._opened_at = ""
        settings = config.spool
        self.database: Database | None = None
        self.inbox: StoredInbox | None = None
        self.filters = SavedFilters(config.home, log)
        if settings.enabled:
            self.database = Database(config.home, log, now, monotonic)
            queues = self.database.queues
            rejected = RejectedMessages(queues["rejected"], now)
            bounds = Bounds(settings.bytes_max, settings.age_max_seconds, drop_oldest=settings.drop == "oldest")
            self.outbox = Outbox(settings.bytes_max // _ROW_SIZE_LEAST, bounds, queues["outgoing"], rejected, now)
            self.inbox = StoredInbox(queues["incoming"], now, monotonic, settings.age_max_seconds)
        else:
            self.outbox = Outbox(config.outbox_messages_max, now=now)

    def open(self) -> None:
        """Open the file, while the home's lock is held. A failure is in `status`."""
        self._now.start()
        self._opened_at = self._read().now.isoformat(timespec="seconds")
        if self.database is not None and self.inbox is not None:
            self.database.reader()
            self.inbox.load()

    def commit(self) -> None:
        """Call once a turn: what was accepted in it is stored, and answered, together."""
        self.outbox.commit()
        if self.database is not None:
            self.database.commit()

    def close(self) -> None:
        if self.database is not None:
            self.database.close()

    def status(self) -> dict[str, object]:
        """What is waiting; what was sent and what was not, since `counted_since`; whether the spool works."""
        outbox, database = self.outbox, self.database
        values: dict[str, object] = {
            "counted_since": self._opened_at,
            "waiting": len(outbox),
            "in_flight": outbox.in_flight,
            "delivered": outbox.delivered,
            "refused": outbox.refused,
            "rejected": len(outbox.rejected),
            "dropped": outbox.dropped,
            "expired": outbox.expired,
            "spool": "off" if database is None else database.problem or "on",
        }
        if database is not None:
            unreadable = sum(queue.unreadable for queue in database.queues.values())
            values |= {"spool_bytes": outbox.size, "spool_damaged": database.damaged + unreadable}
        return values
