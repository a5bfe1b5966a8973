"""The weight budget, on a clock that only its own sleeping moves."""

import threading

import pytest

from exchange.budget import WeightBudget
from exchange.errors import Banned


class FakeTime:
    """A clock and the sleep that moves it."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class MinuteCounter:
    """The exchange's side: weight used in the current minute of its own clock, which nobody else knows."""

    def __init__(self, time: FakeTime, *, phase: float) -> None:
        self.time, self.phase = time, phase
        self.minute, self.used, self.peak = -1, 0, 0

    def take(self, weight: int) -> dict[str, str]:
        minute = int((self.time.now + self.phase) // 60)
        if minute != self.minute:
            self.minute, self.used = minute, 0
        self.used += weight
        self.peak = max(self.peak, self.used)
        return {"x-MBX-used-weight-1m": str(self.used)}


def budget_of(limit: int, time: FakeTime, *, share: float = 0.85) -> WeightBudget:
    return WeightBudget(limit, share, clock=time.clock, sleep=time.sleep)


@pytest.mark.parametrize("phase", [0.0, 13.0, 19.0, 37.5, 59.9])
@pytest.mark.parametrize("latency", [0.0, 0.05, 1.7])
def test_no_minute_of_the_exchange_ever_sees_more_than_the_share(phase: float, latency: float) -> None:
    time = FakeTime()
    server = MinuteCounter(time, phase=phase)
    budget = budget_of(100, time)
    for _ in range(400):
        claim = budget.before(2)
        time.now += latency
        budget.after(claim, server.take(2))
    assert server.peak <= 85
    if latency == 0.0:
        assert server.peak >= 84  # and it does use its share
        assert sum(time.slept) <= 60 * (400 * 2 / 84 + 1)


def test_weight_that_others_use_behind_the_same_address_counts() -> None:
    time = FakeTime()
    budget = budget_of(100, time)
    claim = budget.before(2)
    budget.after(claim, {"X-MBX-USED-WEIGHT-1M": "84"})  # 82 of them were not ours
    assert time.slept == []
    budget.before(2)
    assert sum(time.slept) == pytest.approx(60)


def test_requests_whose_answers_never_came_count_too() -> None:
    time = FakeTime()
    budget = budget_of(10, time, share=1.0)
    claimed = []
    for _ in range(11):
        budget.before(1)
        claimed.append(time.now - 1_000)
    assert claimed[4] == 0  # half at once
    assert claimed[10] >= 60


def test_a_request_heavier_than_the_whole_share_still_gets_its_turn() -> None:
    time = FakeTime()
    budget = budget_of(10, time)
    budget.before(1)
    budget.before(20)
    assert sum(time.slept) == pytest.approx(60)


def test_a_raised_limit_is_used_at_once() -> None:
    time = FakeTime()
    budget = budget_of(10, time, share=1.0)
    budget.before(5)
    budget.learn_limit(20)
    budget.before(5)
    assert time.slept == []


def test_a_pause_holds_everybody_back_and_the_longest_one_wins() -> None:
    time = FakeTime()
    budget = budget_of(100, time)
    budget.pause(30)
    budget.pause(5)
    budget.before(1)
    assert sum(time.slept) == pytest.approx(30)
    budget.before(1)
    assert sum(time.slept) == pytest.approx(30)


def test_a_ban_refuses_without_sleeping_until_it_is_over() -> None:
    time = FakeTime()
    budget = budget_of(100, time)
    ban = Banned("banned", until_ms=0, seconds=120)
    budget.forbid(ban)
    with pytest.raises(Banned) as caught:
        budget.before(1)
    assert caught.value is ban
    assert time.slept == []
    time.now += 121
    budget.before(1)


def test_a_sleep_that_moves_no_clock_does_not_loop() -> None:
    time = FakeTime()
    budget = WeightBudget(10, clock=time.clock, sleep=time.slept.append)
    budget.pause(30)
    for _ in range(20):
        budget.before(1)
    assert time.slept[0] == pytest.approx(30)


def test_threads_share_one_count() -> None:
    time = FakeTime()
    budget = WeightBudget(1000, 1.0, clock=time.clock, sleep=time.sleep)
    threads = [threading.Thread(target=lambda: [budget.before(1) for _ in range(60)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 480
    assert time.slept == []


def test_a_thread_that_was_held_up_does_not_bring_an_old_time() -> None:
    """One reads the clock and is held up, another claims in the next minute: no clock was set back."""
    time, held_up, claimed = FakeTime(), threading.Event(), threading.Event()

    def clock() -> float:
        now = time.now
        if threading.current_thread() is slow and not held_up.is_set():
            time.now = 1_060.0
            held_up.set()
            claimed.wait(0.3)  # in vain if no other thread can claim meanwhile
        return now

    budget = WeightBudget(100, 1.0, clock=clock, sleep=time.sleep)
    slow = threading.Thread(target=budget.before, args=[2])
    budget.after(budget.before(2), {"X-MBX-USED-WEIGHT-1M": "2"})
    time.now = 1_054.0
    slow.start()
    held_up.wait()
    budget.before(2)
    claimed.set()
    slow.join()
    time.now = 1_110.0
    budget.after(budget.before(80), {"X-MBX-USED-WEIGHT-1M": "84"})
    time.now = 1_115.0
    assert budget.at_once(20) is None  # the minute that began at 1060 is not over


def test_answers_without_the_header_change_nothing() -> None:
    time = FakeTime()
    budget = budget_of(100, time)
    claim = budget.before(7)
    budget.after(claim, {"Content-Type": "text/html"})
    assert budget.used == 7


@pytest.mark.parametrize(("limit", "share"), [(0, 0.5), (100, 0.0), (100, 1.5)])
def test_an_impossible_budget_is_refused(limit: int, share: float) -> None:
    with pytest.raises(ValueError, match="share within"):
        WeightBudget(limit, share)
