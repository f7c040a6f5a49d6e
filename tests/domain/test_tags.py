"""Tags and groups: what they may be called, how many, and what a retagging makes of those a device has."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from fleet.domain.device import Device, DeviceId, DeviceState
from fleet.domain.errors import Invalid
from fleet.domain.tags import GROUPS_MAX, TAGS_MAX, Retag, checked_groups, checked_tags, parse_tag, tags_text

CAM_7 = Device(DeviceId("cam-7"), "cam2", DeviceState.ACTIVE, datetime(2026, 3, 1, tzinfo=UTC))


@pytest.mark.parametrize("text", ["lot=L7", "site=Köln Süd", "a.b-c_d=x=y", "K=" + "v" * 128])
def test_a_tag(text: str) -> None:
    key, value = parse_tag(text)
    assert f"{key}={value}" == text


@pytest.mark.parametrize(
    "text",
    [
        "lot",
        "=L7",
        "lot=",
        "7lot=x",
        "lo t=x",
        "k" * 33 + "=x",
        "lot= x",
        "lot=x ",
        "lot=a\nb",
        "lot=" + "v" * 129,
        "state=x",
        "Model=x",
        "and=x",
        "ö=x",
        "lot=\x00",
    ],
)
def test_no_tag(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_tag(text)
    assert caught.value.code == "bad-tag"


def test_as_many_as_may_be_and_not_one_more() -> None:
    tags = [(f"k{n:02}", "v") for n in range(TAGS_MAX)]
    assert checked_tags(reversed(tags)) == tuple(tags)
    with pytest.raises(Invalid, match=f"at most {TAGS_MAX} tags"):
        checked_tags([*tags, ("one-more", "v")])
    with pytest.raises(Invalid, match="k00 is given twice"):
        checked_tags([*tags[:2], ("k00", "w")])
    groups = [f"g{n:02}" for n in range(GROUPS_MAX)]
    assert checked_groups([*groups, "g00"]) == tuple(groups)
    with pytest.raises(Invalid, match=f"at most {GROUPS_MAX} groups"):
        checked_groups([*groups, "one-more"])
    with pytest.raises(Invalid, match="is not a name for a group"):
        checked_groups(["a b"])


def test_what_is_not_named_stays() -> None:
    tagged = replace(CAM_7, tags=(("lot", "L7"), ("old", "x")), groups=("canary", "zoo"))
    retag = Retag((("site", "Oslo"), ("lot", "L8")), ("old", "never"), ("pilot",), ("canary", "never"))
    assert retag.applied(tagged) == ((("lot", "L8"), ("site", "Oslo")), ("pilot", "zoo"))
    full = replace(CAM_7, tags=tuple((f"k{n:02}", "v") for n in range(TAGS_MAX)))
    with pytest.raises(Invalid, match="33"):
        Retag((("site", "x"),)).applied(full)
    assert len(Retag((("site", "x"),), ("k00",)).applied(full)[0]) == TAGS_MAX


@pytest.mark.parametrize(
    ("retag", "code"),
    [
        (lambda: Retag(), "nothing-to-tag"),
        (lambda: Retag((("a", "1"),), ("a",)), "tag-twice"),
        (lambda: Retag(join=("a",), leave=("a",)), "tag-twice"),
        (lambda: Retag(remove=("a b",)), "bad-tag"),
        (lambda: Retag(leave=("",)), "bad-name"),
    ],
)
def test_what_makes_no_sense(retag: object, code: str) -> None:
    assert callable(retag)
    with pytest.raises(Invalid) as caught:
        retag()
    assert caught.value.code == code


def test_for_the_audit() -> None:
    assert tags_text(()) == ""
    assert tags_text({("site", "Köln"), ("lot", "L7")}) == '{"lot": "L7", "site": "Köln"}'
