"""What a budget may know, against an exchange that counts: many requests under way, answers in any order."""

import heapq
import random

import pytest

from exchange.weights import WeightClaim, WeightState

SHARE = 0.92


class Simulation:
    """Requests are counted somewhere on their way; the exchange's minute turns when nobody knows."""

    def __init__(
        self, seed: int, *, limit: int, workers: int, latency: float, lost: float, others: int
    ) -> None:
        self.random = random.Random(seed)
        self.state = WeightState(limit=limit)
        self.limit, self.workers, self.latency, self.lost, self.others = limit, workers, latency, lost, others
        self.now = 1_000 + self.random.uniform(0, 60)
        self.minute, self.used, self.peak, self.total = -1, 0, 0, 0
        self.events: list[tuple[float, int, str, WeightClaim | None, int | None]] = []
        self.under_way = 0

    def at(self, moment: float, what: str, made: WeightClaim | None, count: int | None = None) -> None:
        heapq.heappush(self.events, (moment, self.random.getrandbits(60), what, made, count))

    def count(self, weight: int) -> int:
        if (minute := int(self.now // 60)) != self.minute:
            self.minute, self.used = minute, 0
        self.used += weight
        self.total += weight
        self.peak = max(self.peak, self.used)
        return self.used

    def step(self) -> None:
        self.now, _, what, made, count = heapq.heappop(self.events)
        if made is None:  # another program behind the same address
            self.count(1)
            self.at(self.now + 60 / self.others, what, None)
        elif what == "counted":
            count = None if self.random.random() < self.lost else self.count(made.weight)
            self.at(self.now + self.random.uniform(0, self.latency), "answered", made, count)
        else:
            self.under_way -= 1
            self.state.answered(made.serial, count, self.now)

    def run(self, seconds: float) -> float:
        """The share of the limit that was used, while there was always something to ask for."""
        began = self.now
        weight = 2
        if self.others:
            self.at(self.now, "counted", None)
        while self.now < began + seconds:
            found = self.state.claim(weight, self.now, share=SHARE) if self.under_way < self.workers else 0.0
            if isinstance(found, WeightClaim):
                self.under_way += 1
                self.at(self.now + self.random.uniform(0, self.latency), "counted", found)
                weight = self.random.choice([1, 2, 2, 2, 5])
            elif self.events and (not found or self.events[0][0] <= found):
                self.step()
            else:
                assert found > self.now
                self.now = found
        return self.total / self.limit / (seconds / 60)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("workers", [1, 8, 24])
def test_the_count_stays_below_the_share_and_uses_nine_tenths_of_the_limit(seed: int, workers: int) -> None:
    simulation = Simulation(seed, limit=1_200, workers=workers, latency=0.02, lost=0.0, others=0)
    used = simulation.run(330)
    assert simulation.peak <= SHARE * 1_200
    assert used >= 0.9


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("latency", [0.5, 4.0])
def test_slow_and_lost_answers_never_lift_the_count_above_the_share(seed: int, latency: float) -> None:
    simulation = Simulation(seed, limit=300, workers=24, latency=latency, lost=0.1, others=0)
    used = simulation.run(400)
    assert simulation.peak <= SHARE * 300
    assert used >= 0.75  # requests under way may have been counted already or not: room is kept for them


@pytest.mark.parametrize("seed", range(6))
def test_other_programs_leave_less_and_the_limit_holds(seed: int) -> None:
    simulation = Simulation(seed, limit=600, workers=8, latency=0.2, lost=0.0, others=200)
    used = simulation.run(300)
    assert simulation.peak <= 600
    assert used >= 0.85


def test_an_answer_that_was_overtaken_is_no_turn_of_the_minute() -> None:
    state = WeightState(limit=100)
    first, second = (state.claim(2, 0.0, share=1.0) for _ in range(2))
    assert isinstance(first, WeightClaim)
    assert isinstance(second, WeightClaim)
    state.answered(second.serial, 4, 1.0)
    state.answered(first.serial, 2, 1.1)
    assert state.used == 4
    assert state.window_end == 60.0


def test_a_turn_is_known_by_a_count_that_fell_and_the_next_one_comes_a_minute_later() -> None:
    state = WeightState(limit=100)
    for at, count in ((0.0, 30), (7.0, 32), (7.5, 2)):
        made = state.claim(2, at, share=1.0)
        assert isinstance(made, WeightClaim)
        state.answered(made.serial, count, at)
    assert (state.used, state.window_end) == (2, 67.5)
    assert state.claim(99, 8.0, share=1.0) == 67.5
    assert isinstance(state.claim(50, 67.5, share=1.0), WeightClaim)
    assert state.window_end == 127.5


def test_a_turn_that_did_not_come_is_not_believed_twice() -> None:
    state = WeightState(limit=100, window_end=60.0, seen=90)
    made = state.claim(2, 60.0, share=1.0)
    assert isinstance(made, WeightClaim)
    state.answered(made.serial, 92, 60.1)  # the clock went ahead, the exchange's minute has not turned
    assert state.used == 92
    assert not isinstance(state.claim(20, 60.2, share=1.0), WeightClaim)


def test_a_clock_that_was_set_back_blocks_nobody() -> None:
    state = WeightState(limit=100, window_end=10_000.0, seen=100)
    assert isinstance(state.claim(2, 5_000.0, share=1.0), WeightClaim)
