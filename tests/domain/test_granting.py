"""Nobody gives what it does not have: every role by every role."""

import itertools
from datetime import UTC, datetime

import pytest

from fleet.domain.access import Operator, Role, demand_grantable
from fleet.domain.errors import Refused

NOW = datetime(2030, 1, 1, tzinfo=UTC)

MAY_GIVE = {
    Role.ADMIN: {Role.ADMIN, Role.OPERATOR, Role.VIEWER, Role.FACTORY},
    Role.OPERATOR: {Role.OPERATOR, Role.VIEWER, Role.FACTORY},
    Role.VIEWER: {Role.VIEWER},
    Role.FACTORY: {Role.FACTORY},
}


@pytest.mark.parametrize(("giver", "given"), list(itertools.product(Role, Role)))
def test_a_role(giver: Role, given: Role) -> None:
    operator = Operator("bob", giver, NOW)
    if given in MAY_GIVE[giver]:
        demand_grantable(operator, given, ())
    else:
        with pytest.raises(Refused, match="and yours does not") as refused:
            demand_grantable(operator, given, ())
        assert refused.value.code == "more-than-yours"


@pytest.mark.parametrize(
    ("held", "models", "code"),
    [
        ((), (), ""),
        ((), ("cam",), ""),
        (("cam", "pump"), ("cam",), ""),
        (("cam",), (), "more-than-yours"),
        (("cam",), ("cam", "pump"), "held-to-models"),
    ],
)
def test_models(held: tuple[str, ...], models: tuple[str, ...], code: str) -> None:
    operator = Operator("bob", Role.ADMIN, NOW, held)
    if not code:
        demand_grantable(operator, Role.VIEWER, models)
        return
    with pytest.raises(Refused) as refused:
        demand_grantable(operator, Role.VIEWER, models)
    assert refused.value.code == code
