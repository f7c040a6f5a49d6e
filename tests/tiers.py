"""How much of the suite runs: `--tier quick` (no servers), `short` (what CI runs, the default) or `all`.

A test that only `all` runs is marked `long`; a test that only does more of the same there takes its count from the
fixture `tier`, so that the count stands once.
"""

from enum import StrEnum
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
# Folders, and files, whose tests start no server and no program of ours.
QUICK = ("ca", "config", "domain", "fuzz", "services", "wire")


class Tier(StrEnum):
    QUICK = "quick"
    SHORT = "short"
    ALL = "all"

    def times(self, short: int, *, all: int, quick: int | None = None) -> int:
        if self is Tier.QUICK and quick is not None:
            return quick
        return all if self is Tier.ALL else short


def is_quick(path: Path) -> bool:
    """Whether the tests at `path`, a file or a folder, are among the quick ones."""
    if not path.is_relative_to(TESTS) or path == TESTS:
        return True
    name = str(path.relative_to(TESTS))
    return any(name == quick or name.startswith(f"{quick}/") for quick in QUICK)


# The modules that take longest, so that no processor is left with one of them at the end (--dist loadfile).
LONGEST_FIRST: tuple[str, ...] = (
    "hw_bench/test_scenarios.py",
    "end_to_end/test_workers.py",
    "end_to_end/test_pages_of_fleet.py",
    "end_to_end/test_wills.py",
    "end_to_end/test_pages.py",
    "storage/test_postgres_faults.py",
    "servers/test_gateway_mosquitto.py",
    "hw_bench/test_engine.py",
    "servers/test_gateway_bad_brokers.py",
    "end_to_end/test_api_description.py",
    "interop/test_relying_parties.py",
    "device_agent/store/test_hardware_keys.py",
    "end_to_end/test_distrust.py",
    "servers/test_est_tenants.py",
    "end_to_end/test_demo.py",
    "servers/test_gateway_wills.py",
    "home/test_home.py",
    "device_agent/hooks/test_hooks.py",
    "servers/test_admin_notify.py",
    "end_to_end/test_device_life.py",
    "servers/test_gateway_saved_acks.py",
    "end_to_end/test_tenants.py",
    "device_agent/test_agent_run.py",
    "faults/test_crash_postgres.py",
    "interop/test_dynamic_security.py",
    "hw_bench/test_cli.py",
    "servers/test_admin_lists.py",
    "servers/test_est_wire.py",
    "device_agent/link/test_mqtt_link.py",
    "cli/test_bad_answers.py",
    "firmware_tools/test_station_cli.py",
    "cli/test_db.py",
    "servers/test_gateway_probed_upstream.py",
    "servers/test_gateway_connect.py",
    "backup/test_postgres_backup.py",
    "end_to_end/test_remote_commands.py",
    "faults/test_crash_approval.py",
    "interop/test_mosquitto_bridge.py",
    "servers/test_est_deny.py",
)


# Likewise those that take a minute and more in the whole suite only.
LONGEST_OF_ALL: tuple[str, ...] = (
    "end_to_end/test_api_description.py",
    "device_agent/store/test_real_server.py",
    "interop/test_mosquitto_bridge.py",
    "faults/test_crash.py",
    "device_agent/test_agent_weight.py",
    "hw_bench/test_fleet_year.py",
    "faults/test_crash_postgres.py",
    "device_agent/embedded/test_embedded_device.py",
    "faults/test_kill_serve.py",
    "fuzz/test_corpus.py",
    "device_agent/store/test_crash_states.py",
    "device_agent/spool/test_spool_faults.py",
    "faults/test_crash_approval.py",
    "interop/test_external_brokers.py",
    "interop/test_rabbitmq.py",
)


@cache
def place_in_order(path: Path, tier: Tier) -> int:
    name = str(path.relative_to(TESTS)) if path.is_relative_to(TESTS) else ""
    order = (*LONGEST_OF_ALL, *LONGEST_FIRST) if tier is Tier.ALL else LONGEST_FIRST
    return order.index(name) if name in order else len(order)
