"""From turns to a report: pure arithmetic."""

import json

import pytest

from hw_bench.report import Goal, Report, Spread, Turn, judge, lines, merged, ratio, spread, summarize


def turn(contender: str = "a", number: int = 1, operations: int = 1000, **others: float) -> Turn:
    values = {
        "failed": 0,
        "wall": 1.0,
        "server_cpu": 0.5,
        "load_cpu": 0.9,
        "processes_cpu": 1.4,
        "server_core_busy": 0.5,
        "load_core_busy": 0.9,
    } | others
    return Turn(contender, number, operations, **values)  # type: ignore[arg-type]


def test_rates_of_a_turn() -> None:
    one = turn(operations=3000, wall=2.0, server_cpu=1.5)
    assert one.per_second == 1500
    assert one.per_core == 2000
    assert one.milliseconds == 0.5


def test_a_turn_in_which_nothing_happened_divides_nothing_by_nothing() -> None:
    one = turn(operations=0, wall=0.0, server_cpu=0.0)
    assert (one.per_second, one.per_core, one.milliseconds, one.others) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("server", "load", "apart", "bound"),
    [
        (0.5, 0.95, True, True),
        (0.95, 0.95, True, False),
        (0.95, 0.5, True, False),
        (0.5, 0.5, True, False),
        (0.5, 0.95, False, False),
    ],
)
def test_the_load_is_the_bottleneck_when_its_core_alone_is_full(
    server: float, load: float, apart: bool, bound: bool
) -> None:
    assert turn(server_core_busy=server, load_core_busy=load, apart=apart).load_bound is bound


def test_what_others_took_is_what_neither_server_nor_load_used() -> None:
    assert turn(wall=2.0, processes_cpu=3.0, server_cpu=1.0, load_cpu=1.5).others == pytest.approx(0.25)
    assert turn(processes_cpu=1.0, server_cpu=0.6, load_cpu=0.6).others == 0.0


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        spread([])


def test_parts_merge_into_sums_and_shares_by_time() -> None:
    parts = [turn(wall=1.0, load_core_busy=1.0), turn(wall=3.0, load_core_busy=0.5, operations=500, failed=2)]
    whole = merged(parts)
    assert (whole.operations, whole.failed, whole.wall, whole.server_cpu) == (1500, 2, 4.0, 1.0)
    assert whole.load_core_busy == pytest.approx(0.625)
    with pytest.raises(ValueError, match="nothing was measured"):
        merged([])


def test_ratios_go_pair_by_pair() -> None:
    # The machine halves its speed in round 2: the rates spread, the ratios do not.
    turns = [turn("a", 1, 1200), turn("b", 1, 1000), turn("a", 2, 600), turn("b", 2, 500)]
    assert ratio("a", "b", "per_second", turns).spread == Spread(1.2, 1.2, 1.2)


def test_a_round_without_a_pair_is_left_out_of_ratios() -> None:
    turns = [turn("a", 1, 1200), turn("b", 1, 0), turn("a", 2, 600), turn("b", 2, 300), turn("a", 3, 9)]
    assert ratio("a", "b", "per_second", turns).spread == Spread(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        ratio("a", "c", "per_second", turns)


def test_goals_are_judged_by_the_median() -> None:
    turns = [turn("a", n, rate) for n, rate in ((1, 1000), (2, 1300), (3, 1400))]
    turns += [turn("b", n, 1000) for n in (1, 2, 3)]
    summaries = [summarize("a", "", turns[:3]), summarize("b", "", turns[3:])]
    ratios = [ratio("a", "b", "per_second", turns)]
    by_ratio = judge(Goal("a", "per_second", 1.2, "b"), summaries, ratios)
    assert by_ratio is not None
    assert (by_ratio.value, by_ratio.reached) == (1.3, True)
    by_rate = judge(Goal("a", "per_core", 2601), summaries, ratios)
    assert by_rate is not None
    assert (by_rate.value, by_rate.reached) == (2600, False)
    assert judge(Goal("a", "per_second", 1.0, "nobody"), summaries, ratios) is None


def report() -> Report:
    turns = (turn("ours", 1, 1300, load_core_busy=0.97), turn("theirs", 1, 1000, server_core_busy=0.99, failed=3))
    summaries = tuple(summarize(one.contender, "v1", [one]) for one in turns)
    ratios = (ratio("ours", "theirs", "per_core", turns),)
    verdict = judge(Goal("ours", "per_core", 1.2, "theirs"), summaries, ratios)
    assert verdict is not None
    return Report(
        scenario="handshakes",
        description="what is counted",
        unit="handshakes",
        seconds=1.0,
        rounds=1,
        machine={"machine": "a fast one"},
        turns=turns,
        summaries=summaries,
        ratios=ratios,
        verdicts=(verdict,),
        missing={"nginx": "nginx is not installed"},
        checks=("strangers were refused",),
    )


def test_the_table_says_what_the_json_says() -> None:
    text = "\n".join(lines(report()))
    assert "at least 2,600 (2,600 to 2,600)" in text  # the load's core was full, ours was not
    assert "the load generator was the bottleneck" in text
    assert "ours / theirs, per CPU second: 1.30x" in text
    assert "goal for ours, at least 1.2x theirs per CPU second: reached (1.30x)" in text
    assert "nginx took no part: nginx is not installed" in text
    assert "strangers were refused" in text
    value = json.loads(json.dumps(report().as_json()))
    assert value["summaries"][0]["at_least"] is True
    assert value["summaries"][0]["per_core"] == {"median": 2600.0, "min": 2600.0, "max": 2600.0}
    assert value["summaries"][1]["failed"] == 3
    assert value["ratios"][0]["spread"]["median"] == pytest.approx(1.3)
    assert value["verdicts"][0]["reached"] is True
    assert value["missing"] == {"nginx": "nginx is not installed"}


def test_notes_name_what_disturbed_a_measurement() -> None:
    idle = summarize("a", "", [turn(server_core_busy=0.5, load_core_busy=0.5)])
    assert idle.notes == ("neither core was full; per second says less than per CPU second",)
    disturbed = summarize("a", "", [turn(server_core_busy=0.95, processes_cpu=1.7)])
    assert disturbed.notes == ("other programs took 0.30 cores; per second is too low",)
    alone = summarize("a", "", [turn(server_core_busy=0.95, cores=1)])
    assert alone.notes == ("server and load had one core between them; per second says little",)
