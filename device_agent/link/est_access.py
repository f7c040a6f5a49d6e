"""EST as this device reaches it: the first server that answers, by a clock that a server's time corrects."""

from collections.abc import Callable
from typing import TypeVar

from device_agent.config.agent_config import AgentConfig
from device_agent.link.clock import DeviceClock
from device_agent.log.event_log import EventLog
from fleet.est_client.client import EstClient, Policy
from fleet.est_client.errors import EstBadAnswer, EstError, EstUnreachable, EstUntrusted

Answer = TypeVar("Answer")

TIME_SECONDS_MAX = 15.0  # to ask a server for its time


def first_to_answer(
    config: AgentConfig, clock: DeviceClock, client_of: Callable[[str], EstClient], ask: Callable[[EstClient], Answer]
) -> tuple[str, EstClient, Answer]:
    """The first of the configured servers that can be reached and is trusted: its URL, its client, its answer.

    `client_of` makes a client of a URL, by the `clock` as it is then. Where dates are the obstacle, the server's own
    time is asked for, and the server again if that corrects the clock.

    Raises: EstError, the last server's.
    """
    for url in config.est_urls[:-1]:
        try:
            return _answer(config, clock, client_of, ask, url)
        except (EstUnreachable, EstUntrusted, EstBadAnswer) as error:
            EventLog().event("est-server-failed", reason=error.message)
    return _answer(config, clock, client_of, ask, config.est_urls[-1])


def _answer(
    config: AgentConfig,
    clock: DeviceClock,
    client_of: Callable[[str], EstClient],
    ask: Callable[[EstClient], Answer],
    url: str,
) -> tuple[str, EstClient, Answer]:
    client = client_of(url)
    try:
        answer = ask(client)
    except EstUntrusted as error:
        if not error.is_about_dates or not _learn(config, clock, url):
            raise
        client = client_of(url)
        answer = ask(client)
    clock.learn(client.server_time)
    return url, client, answer


def _learn(config: AgentConfig, clock: DeviceClock, url: str) -> bool:
    """Whether the server's time is another than the clock's, and is believed. Everything but dates is verified."""
    policy = Policy(TIME_SECONDS_MAX, patience_seconds=0, check_time=False, pins=config.pins)
    client = EstClient(url, config.ca_file, policy=policy)
    try:
        client.cacerts()
    except EstError:
        return False
    return clock.learn(client.server_time)
