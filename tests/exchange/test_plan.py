"""Plans: every missing candle once, by the cheapest source that has it."""

import random
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from exchange.archive_parts import ArchivePart
from exchange.plan import Fetch, expected_parts, plan, requests_of
from exchange.stretches import Stretch, joined, shared, without
from storage.schema import SeriesKey

UM = SeriesKey.parse("um:BTCUSDT", "1m")
SPOT = SeriesKey.parse("spot:BTCUSDT", "1m")
HOURLY = SeriesKey.parse("um:BTCUSDT", "1h")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
URL = "https://archive"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def parts(key: SeriesKey, *periods: str) -> list[ArchivePart]:
    return [
        ArchivePart.of(key, "daily" if len(period) > 7 else "monthly", period, archive_url=URL)
        for period in periods
    ]


def steps(fetches: list[Fetch]) -> list[str]:
    return [fetch.part.period if fetch.part else "rest" for fetch in fetches]


def test_whole_months_come_as_months_days_as_days_and_the_tail_over_rest() -> None:
    published = parts(UM, "2024-04", "2024-05", "2024-06-01", "2024-06-02")
    fetches = plan([(at("2024-04-01"), at("2024-06-03T10:00"))], UM, published)
    assert steps(fetches) == ["2024-04", "2024-05", "2024-06-01", "2024-06-02", "rest"]
    assert fetches[-1].stretches == ((at("2024-06-03"), at("2024-06-03T10:00")),)
    assert requests_of(fetches) == 4 * 2 + 2


@pytest.mark.parametrize(
    ("name", "period", "kind"),
    [
        ("spot:BTCUSDT 1m", "2024-04", "2024-04"),  # 44 pages
        ("spot:BTCUSDT 15m", "2024-04", "2024-04"),  # 2.9 pages
        ("spot:BTCUSDT 30m", "2024-04", "rest"),  # 1.4
        ("um:BTCUSDT 30m", "2024-04", "2024-04"),  # 2.9
        ("um:BTCUSDT 1h", "2024-04", "rest"),  # 1.4
        ("spot:BTCUSDT 1m", "2024-04-01", "rest"),  # 1.4
        ("um:BTCUSDT 1m", "2024-04-01", "2024-04-01"),  # 2.9
        ("spot:BTCUSDT 1s", "2024-04-01", "2024-04-01"),
        ("spot:BTCUSDT 1M", "2024-04", "rest"),
    ],
)
def test_a_zip_is_taken_only_where_it_spares_requests(name: str, period: str, kind: str) -> None:
    key = SeriesKey.parse(*name.split())
    fetches = plan([(at("2024-03-01"), at("2024-06-01"))], key, parts(key, period))
    assert kind in steps(fetches)
    assert (period in steps(fetches)) == (kind == period)


def test_a_small_gap_in_a_published_month_comes_over_rest() -> None:
    gap = (at("2024-04-10"), at("2024-04-10T12:00"))
    assert plan([gap], UM, parts(UM, "2024-04", "2024-04-10")) == [Fetch((gap,), None, 2)]


def test_many_small_gaps_in_a_month_come_as_its_zip() -> None:
    gaps = [(at(f"2024-04-{day:02}"), at(f"2024-04-{day:02}") + MINUTE) for day in (1, 5, 9)]
    (fetch,) = plan(gaps, UM, parts(UM, "2024-04"))
    assert (steps([fetch]), fetch.stretches) == (["2024-04"], tuple(gaps))


def test_a_month_that_begins_before_the_range_brings_the_wanted_part_alone() -> None:
    wanted = (at("2024-04-20"), at("2024-05-01"))
    assert plan([wanted], UM, parts(UM, "2024-04"))[0].stretches == (wanted,)


def test_without_rest_every_published_part_is_taken() -> None:
    gap = (at("2024-04-10"), at("2024-04-10T12:00"))
    assert steps(plan([gap], HOURLY, parts(HOURLY, "2024-04-10"), rest=False)) == ["2024-04-10"]


def test_nothing_missing_is_nothing_to_do() -> None:
    assert plan([], UM, parts(UM, "2024-04")) == []


def test_every_missing_candle_is_in_exactly_one_step() -> None:
    rng = random.Random(1)
    for _ in range(60):
        marks = sorted(rng.sample(range(at("2024-01-01"), at("2024-07-01"), MINUTE), 8))
        missing = list(zip(marks[::2], marks[1::2], strict=True))
        months = [f"2024-0{month}" for month in range(1, 7) if rng.random() < 0.6]
        days = [
            f"2024-0{month}-{day:02}" for month in range(1, 7) for day in (1, 2, 28) if rng.random() < 0.5
        ]
        fetches = plan(missing, rng.choice([UM, SPOT]), parts(UM, *months, *days))
        taken = sorted(stretch for fetch in fetches for stretch in fetch.stretches)
        assert all(one[1] <= other[0] for one, other in pairwise(taken))
        assert joined(taken) == joined(missing)
        assert requests_of(fetches) <= requests_of(plan(missing, UM, ()))
        for fetch in fetches:
            if fetch.part:
                inside = (fetch.part.first_ms, fetch.part.last_ms + MINUTE)
                assert shared(fetch.stretches, inside) == list(fetch.stretches)


def test_the_calendar_promises_what_is_over_and_later_what_is_surely_published() -> None:
    missing = [(at("2024-03-30"), at("2024-05-02"))]
    now_ms = at("2024-05-02T12:00")

    def periods(*, surely: bool) -> list[str]:
        return [one.period for one in expected_parts(UM, missing, now_ms, archive_url=URL, surely=surely)]

    hoped, sure = periods(surely=False), periods(surely=True)
    assert [one for one in hoped if len(one) == 7] == ["2024-03", "2024-04"]
    assert [one for one in sure if len(one) == 7] == ["2024-03"]
    assert (hoped[-1], sure[-1]) == ("2024-05-01", "2024-04-29")
    assert len([one for one in hoped if len(one) > 7]) == 2 + 30 + 1


def naive(stretches: list[Stretch]) -> set[int]:
    return {ms for start, end in stretches for ms in range(start, end)}


def test_stretches_agree_with_sets_of_instants() -> None:
    rng = random.Random(2)
    for _ in range(200):
        one, other = (
            [(start, start + rng.randint(1, 9)) for start in rng.sample(range(60), 4)] for _ in range(2)
        )
        one = joined(one)
        assert naive(without(one, other)) == naive(one) - naive(other)
        within = (rng.randint(0, 30), rng.randint(31, 60))
        assert naive(shared(one, within)) == naive(one) & naive([within])
        assert sum(end - start for start, end in without(one, other)) == len(naive(one) - naive(other))
