"""Names, and the table of moves between a device's states."""

import pytest

from fleet.domain.device import NEXT, DeviceState, device_id, plain_name
from fleet.domain.errors import Invalid

DEAD = {DeviceState.REVOKED, DeviceState.RETIRED}


@pytest.mark.parametrize("text", ["a", "7", "cam-7", "A.b:c_d-e", "00:1A:2B", "x" * 64])
def test_a_device_id(text: str) -> None:
    assert device_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "-a", ".a", ":a", "_a", "x" * 65, "a b", "a/b", "a+", "#", "$SYS", "a\0", "a\n", "\na", "é", "a\u200b", "٣"],
)
def test_no_device_id(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        device_id(text)
    assert caught.value.code == "bad-device-id"
    assert caught.value.advice
    assert "\n" not in caught.value.message


def test_an_error_shows_only_the_beginning_of_what_was_sent() -> None:
    with pytest.raises(Invalid) as caught:
        device_id("y" * 100_000)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("text", ["cam2", "Line-1", "a.b_c"])
def test_a_plain_name(text: str) -> None:
    assert plain_name(text, "model") == text


@pytest.mark.parametrize("text", ["", "a:b", "a/b", "../a", ".a", "-a", "a b", "a\n", "x" * 65, "é"])
def test_no_plain_name(text: str) -> None:
    with pytest.raises(Invalid, match="a station") as caught:
        plain_name(text, "station")
    assert caught.value.code == "bad-name"


def test_every_state_has_its_moves() -> None:
    assert set(NEXT) == set(DeviceState)


def test_nothing_leads_back_from_the_dead() -> None:
    assert NEXT[DeviceState.RETIRED] == frozenset()
    assert NEXT[DeviceState.REVOKED] == {DeviceState.RETIRED}


def test_everything_alive_can_be_put_out() -> None:
    for state in set(DeviceState) - DEAD:
        assert NEXT[state] >= DEAD


def test_a_suspended_device_comes_back_as_what_it_was() -> None:
    assert NEXT[DeviceState.SUSPENDED] - DEAD == {DeviceState.REGISTERED, DeviceState.ACTIVE}


def test_no_move_stays_where_it_is() -> None:
    assert all(state not in following for state, following in NEXT.items())
