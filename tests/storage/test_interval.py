"""Intervals against the calendar of the standard library."""

from datetime import UTC, datetime, timedelta

import pytest

from storage.errors import CandleError
from storage.interval import INTERVALS, Interval


def ms(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 1000


def test_the_names_are_binances_in_order_of_length():
    assert " ".join(INTERVALS) == "1s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M"
    assert [one.name for one in sorted(map(Interval, reversed(INTERVALS)))] == list(INTERVALS)


@pytest.mark.parametrize("name", ["1H", "2m", "", "hour", "1mo"])
def test_an_unknown_interval_is_refused_with_the_known_ones(name):
    with pytest.raises(CandleError, match=r"1s, 1m, .*, 1M \(case matters\), found "):
        Interval(name)


def test_a_minute_and_a_month_differ_in_file_names_on_every_file_system():
    slugs = [Interval(name).slug for name in INTERVALS]
    assert len({slug.lower() for slug in slugs}) == len(INTERVALS)
    assert [Interval.of_slug(slug).name for slug in slugs] == list(INTERVALS)


@pytest.mark.parametrize("name", [name for name in INTERVALS if name != "1M"])
def test_fixed_intervals_step_by_their_length(name):
    interval = Interval(name)
    step = interval.milliseconds
    assert step is not None
    opened = interval.floor(ms(2024, 2, 29, 13, 37, 11) + 250)
    assert opened <= ms(2024, 2, 29, 13, 37, 11) + 250 < opened + step
    assert interval.floor(opened) == opened
    assert interval.floor(opened - 1) == opened - step
    assert interval.next(opened) == opened + step == interval.close(opened) + 1
    assert interval.count(opened, opened + 9 * step) == 10
    assert interval.count(opened, opened - step) == 0


def test_weeks_open_on_monday():
    week = Interval("1w")
    assert week.floor(ms(2024, 6, 2, 23, 59)) == ms(2024, 5, 27)
    assert week.floor(ms(2024, 6, 3)) == ms(2024, 6, 3)
    for day in range(20):
        opened = datetime.fromtimestamp(week.floor(ms(2017, 8, 14) + day * 86_400_000) / 1000, UTC)
        assert opened.weekday() == 0


def test_three_days_are_counted_from_1970():
    opened = Interval("3d").floor(ms(2017, 8, 17, 4))
    assert (datetime.fromtimestamp(opened / 1000, UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days % 3 == 0
    assert opened == ms(2017, 8, 16)


def test_months_follow_the_calendar():
    month = Interval("1M")
    assert month.milliseconds is None
    assert month.floor(ms(2024, 2, 29, 23, 59, 59) + 999) == ms(2024, 2, 1)
    assert month.next(ms(2024, 12, 1)) == ms(2025, 1, 1)
    assert month.close(ms(2024, 2, 1)) == ms(2024, 3, 1) - 1
    assert month.count(ms(2023, 11, 1), ms(2024, 2, 1)) == 4
    assert month.count(ms(2024, 2, 1), ms(2024, 1, 1)) == 0
    day, naive = datetime(2019, 12, 1, tzinfo=UTC), []
    while day.year < 2022:
        if day.day == 1:
            naive.append(int(day.timestamp()) * 1000)
        day += timedelta(days=1)
    walked = [naive[0]]
    while len(walked) < len(naive):
        walked.append(month.next(walked[-1]))
    assert walked == naive
