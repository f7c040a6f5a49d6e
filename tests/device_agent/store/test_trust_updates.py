"""Which trust anchors an update of the fleet retires, and which it cannot."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from device_agent.enrollment.trust_updates import apply_trust_update
from fleet.ca.authority import create_issuing, create_root, succeed_root
from fleet.est_client.errors import EstBadAnswer
from fleet.wire.trust_update import key_name, sign_trust_update
from tests.device_agent.fleet_parts import Authority

NOW = datetime(2030, 1, 1, tzinfo=UTC)
OLDEST, OLDEST_KEY = create_root("Acme", NOW - timedelta(days=800))
OLD, OLD_KEY = succeed_root(OLDEST, OLDEST_KEY, NOW - timedelta(days=400)).certified
NEW, NEW_KEY = succeed_root(OLD, OLD_KEY, NOW - timedelta(days=1)).certified
ISSUING, KEY = create_issuing("Acme", NEW, NEW_KEY, NOW - timedelta(days=1))
OLD_ISSUING, OLD_ISSUING_KEY = create_issuing("Acme", OLD, OLD_KEY, NOW - timedelta(days=300))
FOREIGN, FOREIGN_KEY = create_root("Other", NOW - timedelta(days=900))
ALL = (OLDEST, OLD, NEW, FOREIGN)


def names(*roots: x509.Certificate) -> list[str]:
    return [key_name(root) for root in roots]


def test_predecessors_are_retired_by_a_ca_below_their_successor() -> None:
    update = sign_trust_update(names(OLDEST, OLD), [ISSUING], KEY, NOW)
    assert apply_trust_update(update, ALL, NOW) == (NEW, FOREIGN)
    assert apply_trust_update(update, (NEW, FOREIGN), NOW) == (NEW, FOREIGN)  # replayed
    assert apply_trust_update(update, ALL, datetime(2050, 1, 1, tzinfo=UTC) - timedelta(days=7300)) == (NEW, FOREIGN)


def test_the_root_itself_may_sign() -> None:
    assert apply_trust_update(sign_trust_update(names(OLD), [NEW], NEW_KEY, NOW), ALL, NOW) == (OLDEST, NEW, FOREIGN)


def test_a_root_of_another_name_is_not_retired() -> None:
    update = sign_trust_update(names(FOREIGN, OLD), [ISSUING], KEY, NOW)
    assert apply_trust_update(update, ALL, NOW) == (OLDEST, NEW, FOREIGN)


def test_an_old_roots_key_retires_no_newer_root() -> None:
    """The reason why an old root is retired: its key is in wrong hands."""
    for chain, key in (([OLD_ISSUING], OLD_ISSUING_KEY), ([OLD], OLD_KEY)):
        update = sign_trust_update(names(NEW), chain, key, NOW)
        assert apply_trust_update(update, ALL, NOW) == ALL


@pytest.mark.parametrize("anchors", [ALL, (NEW,), (OLD, NEW)])
def test_no_update_takes_the_anchor_of_its_own_signer(anchors: tuple[x509.Certificate, ...]) -> None:
    update = sign_trust_update(names(OLDEST, OLD, NEW), [ISSUING], KEY, NOW)
    with pytest.raises(EstBadAnswer, match="no trust anchor that it leaves"):
        apply_trust_update(update, anchors, NOW)


def test_no_stranger_and_no_device_signs_one(authority: Authority) -> None:
    foreign_issuing, foreign_key = create_issuing("Other", FOREIGN, FOREIGN_KEY, NOW)
    update = sign_trust_update(names(OLD), [foreign_issuing], foreign_key, NOW)
    with pytest.raises(EstBadAnswer, match="no trust anchor that it leaves"):
        apply_trust_update(update, (OLD, NEW), NOW)
    certificate, key = authority.issue("cam-7")
    update = sign_trust_update(names(OLD), [certificate, authority.issuing], key, NOW)
    with pytest.raises(EstBadAnswer, match="no CA"):
        apply_trust_update(update, (OLD, NEW, authority.root), NOW)


def test_what_cannot_be_read_retires_nothing() -> None:
    for data in (b"", b"{}", b"\xff"):
        with pytest.raises(EstBadAnswer, match="trust update is refused"):
            apply_trust_update(data, ALL, NOW)
