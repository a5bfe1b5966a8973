"""Many requests at once: bounded, timed, drawn together, and undisturbed by a new champion."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kronos_model.context import Forecast
from kronos_model.forecaster import Forecaster
from service.config import ServiceConfig
from storage.layout import Home
from tests.support.serving import BTC, DOGE, Site, crown, make_home, serving


class Valve:
    """Holds the sampler until it is opened, and notes the batches that pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        self.entered, self.open = threading.Event(), threading.Event()
        self.ended = threading.Event()
        paths = Forecaster.paths

        def held(model: Forecaster, features: Any, *others: Any, progress: Any, **options: Any) -> Forecast:
            self.batches.append(len(features))
            self.entered.set()
            try:
                while not self.open.wait(0.01):
                    progress(0, 1)
                return paths(model, features, *others, progress=progress, **options)
            finally:
                self.ended.set()

        monkeypatch.setattr(Forecaster, "paths", held)


@pytest.fixture
def valve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Valve]:
    valve = Valve(monkeypatch)
    yield valve
    valve.open.set()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(tmp_path_factory.mktemp("service"))


def until(reached: Callable[[], bool], what: str) -> None:
    """Return once it is so; a failure after a minute."""
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, f"{what}: not within a minute"
        time.sleep(0.002)


def waiting(site: Site, count: int) -> None:
    """Return once so many forecasts wait."""
    until(lambda: site.get("/health").json()["waiting"] == count, f"{count} forecasts wait")


def test_what_waits_is_drawn_in_one_batch_with_the_result_of_drawing_alone(home: Home, valve: Valve) -> None:
    asked = [{"symbol": key.name, "seed": seed, "samples": 6} for seed in range(4) for key in (BTC, DOGE)]
    with serving(home) as site, ThreadPoolExecutor(9) as pool:
        first = pool.submit(site.forecast, samples=5)
        assert valve.entered.wait(30)
        others = [pool.submit(site.forecast, **one) for one in asked]
        waiting(site, 9)
        valve.open.set()
        together = [other.result() for other in others]
        first.result()
    assert valve.batches == [1, 8]
    with serving(home, ServiceConfig(batch_rows=1, cache=0)) as site:
        alone = [site.forecast(**one) for one in asked]
    assert [one["fan"] for one in together] == [one["fan"] for one in alone]
    assert valve.batches == [1, 8, *[1] * 8]


def test_the_same_question_is_drawn_once(home: Home, valve: Valve) -> None:
    with serving(home) as site, ThreadPoolExecutor(5) as pool:
        first = pool.submit(site.forecast)
        assert valve.entered.wait(30)
        others = [pool.submit(site.forecast) for _ in range(4)]
        valve.open.set()
        answers = [one.result() for one in (first, *others)] + [site.forecast()]
    assert valve.batches == [1]
    assert all(answer == answers[0] for answer in answers)


def test_beyond_the_queue_the_answer_is_503_with_retry_after(home: Home, valve: Valve) -> None:
    with serving(home, ServiceConfig(queue=2)) as site, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(site.forecast, seed=seed) for seed in (1, 2)]
        waiting(site, 2)
        answer = site.get("/forecast", symbol="BTCUSDT", seed=3)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"].startswith("Expected room for another forecast")
        assert site.get("/candles", symbol="BTCUSDT").status_code == 200
        valve.open.set()
        assert all(one.result()["fan"] for one in held)
        assert site.get("/forecast", symbol="BTCUSDT", seed=3).status_code == 200


def test_a_forecast_that_takes_too_long_is_given_up_with_504(home: Home, valve: Valve) -> None:
    with serving(home, ServiceConfig(timeout_s=0.2)) as site:
        answer = site.get("/forecast", symbol="BTCUSDT")
        assert answer.status_code == 504
        assert "0.2 s" in answer.json()["error"]
        assert valve.ended.wait(30), "the sampler still works for nobody"
        waiting(site, 0)
        valve.open.set()
    with serving(home) as site:
        assert site.forecast()["fan"]


def test_a_defect_is_one_500_and_the_next_request_is_answered(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(home) as site:
        with monkeypatch.context() as broken:
            broken.setattr(Forecaster, "paths", lambda *a, **k: 1 / 0)
            answer = site.get("/forecast", symbol="BTCUSDT")
        assert answer.status_code == 500
        assert "ZeroDivision" not in answer.text
        assert site.forecast()["fan"]


def test_a_champion_swap_under_load_drops_nothing_and_mixes_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with serving(home, ServiceConfig(watch_s=0.02, cache=0)) as site:

        def serves() -> str:
            return site.service.champion_models.models[0].champion.predictor_digest

        old = serves()
        swapped = threading.Event()
        answers: list[tuple[int, dict[str, Any]]] = []

        def client(first: int) -> None:
            seed = first
            while not (swapped.is_set() and seed > first + 20):
                answers.append((seed % 5, site.forecast(seed=seed % 5, samples=4)))
                seed += 1

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, 100 * number) for number in range(8)]
            until(lambda: len(answers) >= 40, "forty answers")
            new = crown(home, seed=1).predictor_digest
            until(lambda: serves() != old, "the new champion serves")
            swapped.set()
            for one in clients:
                one.result()
        expected = {}
        for seed in range(5):
            expected[new, seed] = site.forecast(seed=seed, samples=4)["fan"]
        crown(home, seed=0)
        until(lambda: serves() != new, "the old champion serves again")
        for seed in range(5):
            expected[old, seed] = site.forecast(seed=seed, samples=4)["fan"]
    assert {answer["predictor"] for _, answer in answers} == {old, new}
    for seed, answer in answers:
        assert answer["fan"] == expected[answer["predictor"], seed]


def test_a_champion_that_cannot_be_loaded_leaves_the_old_one_and_says_so(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    record = home.models / "demo" / "champion.json"
    good = record.read_text()
    with serving(home, ServiceConfig(watch_s=0.02)) as site:
        before = site.forecast()
        record.write_text("{")
        until(lambda: bool(site.service.champion_models.problems), "the damage is seen")
        assert site.get("/health").json()["status"] == "degraded"
        assert "champion record" in site.get("/models").json()["problems"]["demo"]
        assert site.forecast() == before
        record.write_text(good)
        until(lambda: not site.service.champion_models.problems, "the repair is seen")
        assert site.get("/health").json()["status"] == "ok"
        record.unlink()
        until(lambda: not site.service.champion_models.models, "nobody serves")
        pulse = site.get("/pulse", symbol="BTCUSDT").json()
        assert (pulse["model"], pulse["predictor"]) == ("references", None)
