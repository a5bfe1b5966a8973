"""The API answers what the lake, the model and the record say, and refuses in a sentence."""

import json
import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from kronos_model.evaluation.stored_scores import skill_interval
from kronos_model.forecaster import Forecaster
from kronos_model.sampling import SamplingConfig
from service import track_record
from service.config import ServiceConfig
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Source
from storage.registry import read_champion, write_champion
from storage.schema import SeriesKey
from tests.support.candles import HOUR_MS, JUNE_MS, full_candles
from tests.support.quantiles import path_quantiles
from tests.support.serving import (
    BLEND,
    BTC,
    CANDLES,
    DOGE,
    HORIZON,
    LAST_MS,
    LOOKBACK,
    NOW_MS,
    Site,
    crown,
    keep_forecast,
    make_home,
    night_made_for,
    serving,
)
from tests.support.snapshots import snapshot

TOKEN = "0123456789abcdef-not-a-secret"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def site(home: Home):
    with serving(home, ServiceConfig(max_samples=200, max_points=2_500, body_timeout_s=0.3)) as site:
        yield site


def our_paths(
    home: Home, *, seed: int, samples: int, end: int = CANDLES, temperature: float = 1.0
) -> np.ndarray:
    """Paths (S, H, 6) straight from the champion's files."""
    champion = read_champion(home, "demo")
    assert champion is not None
    model = Forecaster.load(home.root / champion.tokenizer, home.root / champion.predictor)
    rows = Lake(home.lake).read(BTC)[end - LOOKBACK : end]
    names = ("open", "high", "low", "close", "volume", "quote_volume")
    features = np.stack([rows[name].to_numpy() for name in names], axis=-1)[None].astype(np.float32)
    opened = rows["open_time"].dt.epoch("ms").to_numpy()[None]
    future = opened[:, -1:] + HOUR_MS * np.arange(1, HORIZON + 1)
    config = SamplingConfig(samples=samples, temperature=temperature)
    paths = model.paths(features, opened, future, [BTC.name], config=config, seed=seed).paths
    if (known := model.postprocess) is not None and known.suits(config):
        paths = known.alone(paths, features[:, -1, 3])
    return paths[0]


def test_a_forecast_has_the_quantiles_of_the_models_own_paths(site: Site, home: Home) -> None:
    found = site.forecast(samples=20, seed=3, quantiles=[0.1, 0.5, 0.9], paths=2)
    close = our_paths(home, seed=3, samples=20)[:, :, 3].astype(np.float64)
    for level in (0.1, 0.5, 0.9):
        expected = path_quantiles(close, level)
        np.testing.assert_allclose(found["fan"]["quantiles"][f"{level:g}"], expected)
    np.testing.assert_allclose(found["paths"], close[:2])
    assert found["fan"]["open_ms"] == [LAST_MS + HOUR_MS * step for step in range(1, HORIZON + 1)]
    assert found["outlook"]["end_ms"] == LAST_MS + HOUR_MS * (HORIZON + 1) - 1
    assert found["outlook"]["probability_up"] == np.mean(close[:, -1] > np.float32(found["last_close"]))
    assert (found["origin_ms"], found["behind"], found["trained_on_it"]) == (LAST_MS, 0, True)


def test_a_forecast_from_an_earlier_candle_knows_nothing_later(site: Site, home: Home) -> None:
    found = site.forecast(samples=8, origin_ms=LAST_MS - 24 * HOUR_MS, quantiles=[0.5])
    close = our_paths(home, seed=0, samples=8, end=CANDLES - 24)[:, :, 3].astype(np.float64)
    np.testing.assert_allclose(found["fan"]["quantiles"]["0.5"], np.median(close, axis=0))
    assert found["behind"] == 24


def test_the_same_seed_gets_the_same_forecast_and_another_seed_another(site: Site) -> None:
    first, again, other = (site.forecast(samples=10, seed=seed)["fan"] for seed in (11, 11, 12))
    assert first == again != other


def test_an_address_asks_what_a_body_asks(site: Site) -> None:
    asked = {"symbol": "BTCUSDT", "samples": 9, "seed": 5, "quantiles": "0.25,0.75"}
    found = site.get("/forecast", **asked).json()
    assert found == site.forecast(samples=9, seed=5, quantiles=[0.25, 0.75])


def test_candles_are_those_of_the_lake(site: Site, home: Home) -> None:
    found = site.get("/candles", symbol="um:DOGEUSDT", interval="1h", limit=30, end_ms=LAST_MS).json()
    rows = Lake(home.lake).read(DOGE)[CANDLES - 31 : CANDLES - 1]
    assert found["open_ms"] == rows["open_time"].dt.epoch("ms").to_list()
    for name in ("open", "high", "low", "close", "volume"):
        assert found[name] == rows[name].to_list()


def test_series_models_scores_and_pulse_say_what_there_is(site: Site, home: Home) -> None:
    champion = read_champion(home, "demo")
    assert champion is not None
    series = site.get("/series").json()
    assert [(one["symbol"], one["rows"], one["behind"]) for one in series["series"]] == [
        (BTC.name, CANDLES, 0),
        (DOGE.name, CANDLES, 0),
    ]
    (model,) = site.get("/models").json()["models"]
    assert (model["predictor"], model["horizon"]) == (champion.predictor_digest, HORIZON)
    scores = site.get("/scores").json()
    assert (scores["verdict"], scores["leaderboard"][0]["crps_bps"]) == ("promote", 109.4)
    assert scores["champion"]["predictor"] == champion.predictor_digest
    pulse = site.get("/pulse", symbol="BTCUSDT").json()
    assert (pulse["now_ms"], pulse["last_ms"], pulse["behind"]) == (NOW_MS, LAST_MS, 0)
    assert pulse["price"]["value"] == Lake(home.lake).read(BTC)["close"][-1]
    assert pulse["next_close_ms"] == LAST_MS + 2 * HOUR_MS
    assert site.get("/health").json()["status"] == "ok"


def test_history_shows_what_was_said_and_what_came(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    for hours in (2, 30, 100):
        keep_forecast(home, BTC, origin_ms=LAST_MS - hours * HOUR_MS)
    closes = Lake(home.lake).read(BTC)["close"].to_list()
    with serving(home) as site:
        older, newer = site.get("/history", symbol="BTCUSDT", hours=48).json()["forecasts"]
    assert older["came"] == closes[CANDLES - 30 : CANDLES - 26]
    assert newer["came"] == [closes[-2], closes[-1], None, None]
    assert newer["fan"]["quantiles"]["0.05"] == [5.0] * HORIZON


def test_a_champion_from_before_post_processing_serves_as_it_did(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    champion = read_champion(home, "demo")
    assert champion is not None
    told = {"version": 2, "levels": [0.9], "factors": [[2.0, 3.0]], "origins": 40, "samples": 20}
    told |= {"temperature": 0.5, "top_k": 0, "top_p": 1.0}
    (home.root / champion.predictor / "calibration.json").write_text(json.dumps(told))
    with serving(home) as site:
        judged = site.forecast(samples=20, quantiles=[0.1, 0.9])
    with serving(home, ServiceConfig(as_judged=False)) as site:
        plain = site.forecast(samples=20, quantiles=[0.1, 0.9])
    (spread,) = judged["postprocessing"]
    assert spread.startswith("the spread of the paths is scaled by 2.00 to 3.00")
    assert plain["postprocessing"] == []
    assert judged["weights"] == plain["weights"] == {"network": 1.0}
    for found, temperature in ((judged, 0.5), (plain, 1.0)):
        close = our_paths(home, seed=0, samples=20, temperature=temperature)[:, :, 3].astype(np.float64)
        expected = path_quantiles(close, 0.9)
        np.testing.assert_allclose(found["fan"]["quantiles"]["0.9"], expected)


def test_a_blended_champion_says_who_gives_what_and_what_the_network_adds(tmp_path: Path) -> None:
    home = make_home(tmp_path, champion=False)
    crown(home, seed=0, postprocess=BLEND)
    with serving(home) as site:
        found = site.forecast(samples=20)
        (model,) = site.get("/models").json()["models"]
    with serving(home, ServiceConfig(as_judged=False)) as site:
        plain = site.forecast(samples=20)
    assert found["model"] == "champion"
    assert found["weights"] == model["weights"] == BLEND.pool
    assert found["adds"] == model["adds"]
    assert found["adds"] == "the network adds 50 % of the paths; the others are the references'"
    kept, pool, spread = found["postprocessing"]
    assert kept == "0 to 50 % of the network's median move is kept"
    assert pool == "paths are pooled: network 50 %, ewma 30 %, bootstrap 20 %"
    assert spread.startswith("the spread of the paths is scaled by 1.10 to 1.30")
    assert (plain["weights"], plain["postprocessing"]) == ({"network": 1.0}, [])


@pytest.mark.parametrize("verb", ["adds to", "harms", "adds nothing yet for certain to"])
def test_what_a_verdict_says_that_the_network_adds_is_passed_on(verb: str, tmp_path: Path) -> None:
    home = make_home(tmp_path, champion=False)
    champion = crown(home, seed=0, postprocess=BLEND)
    said = f"the network {verb} the references: its weight in the blend is 50 %"
    write_champion(home, "demo", replace(champion, reasons=("challenger is better than base", said)))
    with serving(home) as site:
        assert site.forecast()["adds"] == said


def test_without_a_champion_the_references_forecast_as_the_nights_were_made(tmp_path: Path) -> None:
    home = make_home(tmp_path, champion=False)
    night_made_for(home, lookback=LOOKBACK, horizon=HORIZON)
    with serving(home) as site:
        found, named = site.forecast(samples=20), site.forecast(samples=20, recipe="demo")
        assert site.get("/health").json()["status"] == "empty"
        pulse = site.get("/pulse", symbol="BTCUSDT").json()
        crown(home, seed=0)
        site.service.champion_models.refresh()
        assert site.forecast(samples=20)["model"] == "champion"
    assert found["fan"] == named["fan"]
    assert (found["model"], found["predictor"], found["tokenizer"]) == ("references", None, None)
    assert (found["recipe"], named["recipe"]) == (None, "demo")
    assert (found["horizon"], found["trained_on_it"]) == (HORIZON, False)
    assert found["adds"] == "by the references: no network has earned a place yet"
    assert (pulse["model"], pulse["predictor"]) == ("references", None)


def test_an_interval_that_no_champion_fits_is_forecast_by_the_references(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    daily = SeriesKey.parse("spot:BTCUSDT", "1d")
    Lake(home.lake).upsert(daily, full_candles(500, interval=daily.interval), source=Source("rest", "x"))
    with serving(home, now_ms=JUNE_MS + 501 * 24 * HOUR_MS) as site:
        found = site.forecast(interval="1d", horizon=5)
        assert (found["model"], found["horizon"]) == ("references", 5)
        assert found["weights"] == pytest.approx(dict.fromkeys(("ewma", "har", "bootstrap"), 1 / 3))
        assert site.forecast(interval="1h")["model"] == "champion"
        answer = site.get("/forecast", symbol="BTCUSDT", interval="1d", recipe="demo")
        assert answer.status_code == 422
        assert "made for (1h), found 1d" in answer.json()["error"]


def test_a_champion_that_cannot_be_loaded_is_not_replaced_in_silence(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    champion = read_champion(home, "demo")
    assert champion is not None
    (home.root / champion.predictor / "postprocess.json").write_text('{"version": 99}')
    with serving(home) as site:
        for asked in ({}, {"recipe": "demo"}):
            answer = site.get("/forecast", symbol="BTCUSDT", **asked)
            assert answer.status_code == 404
            assert "postprocess.json" in answer.json()["error"]


def test_scores_count_the_forecasts_whose_candles_have_come(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    champion = read_champion(home, "demo")
    assert champion is not None
    for hours in (2, 30, 100):
        keep_forecast(home, BTC, origin_ms=LAST_MS - hours * HOUR_MS, digest=champion.predictor_digest)
    closes = Lake(home.lake).read(BTC)["close"].to_numpy()
    came = np.concatenate([closes[CANDLES - hours : CANDLES - hours + HORIZON] for hours in (30, 100)])
    with serving(home) as site:
        (live,) = site.get("/scores").json()["live"]
    assert (live["symbol"], live["scored"], live["waiting"]) == (BTC.name, 2, 1)
    assert live["coverage_90"] == np.mean((came >= 5) & (came <= 95))
    assert live["last_value_bps"] == pytest.approx(10_000 * np.mean(np.abs(np.log(came / 99))))
    assert (live["skill_low"], live["skill_high"]) == (None, None), "two origins are too few"
    assert live["against"] == "cannot be told from the last value"


def test_the_live_skill_comes_with_the_interval_that_its_words_follow(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    champion = read_champion(home, "demo")
    assert champion is not None
    for hours in range(HORIZON + 1, CANDLES - 4, 2):
        keep_forecast(home, BTC, origin_ms=LAST_MS - hours * HOUR_MS, digest=champion.predictor_digest)
    with serving(home) as site:
        (live,) = site.get("/scores").json()["live"]
    assert live["skill_low"] < live["skill"] < live["skill_high"] < 0, "a fan from 5 to 95 around nothing"
    assert live["against"] == "is worse than the last value"


def test_the_interval_of_a_live_skill_is_measured_once_for_the_same_scores_and_anew_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path)
    champion = read_champion(home, "demo")
    assert champion is not None
    measured: list[int] = []

    def counted(origin_ms: Any, *rest: Any) -> Any:
        measured.append(len(origin_ms))
        return skill_interval(origin_ms, *rest)

    monkeypatch.setattr(track_record, "skill_interval", counted)
    track_record._measured.cache_clear()
    with serving(home) as site:
        for most in (100, 102):
            for hours in range(HORIZON + 1, most, 2):
                keep_forecast(
                    home, BTC, origin_ms=LAST_MS - hours * HOUR_MS, digest=champion.predictor_digest
                )
            assert site.get("/scores").json()["live"] == site.get("/scores").json()["live"]
    assert len(measured) == 2
    assert measured[0] < measured[1]


def test_reading_leaves_a_home_byte_for_byte_as_it_was(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    champion = crown(home, seed=1)
    (home.models / "demo" / "history.jsonl").unlink()  # as a crash after champion.json leaves it
    for hours in (9, 10, 1):  # two are due and not scored yet, one waits
        keep_forecast(home, BTC, origin_ms=LAST_MS - hours * HOUR_MS, digest=champion.predictor_digest)
    with serving(home) as site:
        before = snapshot(home.root)
        routes = site.get("/openapi.json").json()["paths"]
        asked = [path for path, methods in routes.items() if "get" in methods]
        for path in (*asked, "/", "/openapi.json", "/assets/app.js"):
            answer = site.get(path, symbol=BTC.name)
            assert answer.status_code in (200, 422), (path, answer.text)  # some take no symbol
        (live,) = site.get("/scores").json()["live"]
        assert (live["scored"], live["waiting"]) == (2, 1)
        assert snapshot(home.root) == before


REFUSED = [
    ("/forecast", {"symbol": "NOPE"}, 404, "spot:BTCUSDT, um:DOGEUSDT"),
    ("/forecast", {}, 422, "symbol"),
    ("/forecast", {"symbol": "BTCUSDT", "interval": "4h"}, 404, "1h"),
    ("/forecast", {"symbol": "BTCUSDT", "horizon": 0}, 422, "horizon"),
    ("/forecast", {"symbol": "BTCUSDT", "horizon": 481}, 422, "480"),
    ("/forecast", {"symbol": "BTCUSDT", "samples": 201}, 422, "200"),
    ("/forecast", {"symbol": "BTCUSDT", "horizon": 100, "samples": 100}, 422, "2,500"),
    ("/forecast", {"symbol": "BTCUSDT", "samples": "many"}, 422, "integer"),
    ("/forecast", {"symbol": "BTCUSDT", "quantiles": "0.5,1"}, 422, "quantiles.1"),
    ("/forecast", {"symbol": "BTCUSDT", "quantiles": "nan"}, 422, "quantiles"),
    ("/forecast", {"symbol": "BTCUSDT", "seed": -1}, 422, "seed"),
    ("/forecast", {"symbol": "BTCUSDT", "horzion": 3}, 422, "horzion"),
    ("/forecast", {"symbol": "BTCUSDT", "recipe": "none"}, 404, "demo"),
    ("/forecast", {"symbol": "BTCUSDT", "origin_ms": LAST_MS + 1}, 404, "/candles"),
    ("/forecast", {"symbol": "BTCUSDT", "origin_ms": LAST_MS - 110 * HOUR_MS}, 409, "hole"),
    ("/forecast", {"symbol": "B" * 61}, 422, "60 characters"),
    ("/candles", {"symbol": "BTCUSDT", "limit": 5_001}, 422, "5,000"),
    ("/candles", {"symbol": "../../etc/passwd"}, 404, "symbol"),
    ("/history", {"symbol": "BTCUSDT", "hours": 0}, 422, "hours"),
    ("/scores", {"recipe": "none"}, 404, "night"),
    *(
        ("/scores", {"recipe": path}, 422, "recipe")
        for path in ("../demo", "demo/../demo", "/tmp", "..", "demo\n")
    ),
    ("/forecast", {"symbol": "BTCUSDT", "recipe": "./demo"}, 422, "recipe"),
    ("/nowhere", {}, 404, "/openapi.json"),
    ("/assets/../api.py", {}, 404, "/openapi.json"),
]


@pytest.mark.parametrize(("path", "query", "status", "said"), REFUSED)
def test_what_cannot_be_answered_is_refused_in_a_sentence(
    site: Site, path: str, query: dict, status: int, said: str
) -> None:
    answer = site.get(path, **query)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    sentence = answer.json()["error"]
    assert sentence.startswith("Expected ")
    assert said in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "body", [b"{", b"", b"[]", b"null", b'{"symbol": 7}', b'{"symbol": "BTCUSDT", "seed": NaN}', b"\xff"]
)
def test_a_malformed_body_is_refused_in_a_sentence(site: Site, body: bytes) -> None:
    answer = requests.post(
        f"{site.url}/forecast", data=body, timeout=60, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    assert answer.json()["error"].startswith("Expected ")


@pytest.mark.parametrize("declared", [True, False])
def test_an_oversized_body_is_refused_with_413(site: Site, declared: bool) -> None:
    body = b"x" * 20_000
    answer = requests.post(f"{site.url}/forecast", data=body if declared else iter([body]), timeout=60)
    assert answer.status_code == 413
    assert "16,384" in answer.json()["error"]


def test_a_body_that_does_not_come_is_refused_with_408(site: Site) -> None:
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /forecast HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        answer = b"".join(iter(lambda: connection.recv(4_096), b""))  # the service closes it
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"Expected the request body within 0.3 s" in answer


def test_a_wrong_method_is_refused_with_405(site: Site) -> None:
    assert requests.delete(f"{site.url}/forecast", timeout=60).status_code == 405


def test_the_examples_of_the_openapi_document_are_answered(site: Site) -> None:
    schema = site.get("/openapi.json").json()
    examples = schema["components"]["schemas"]["ForecastRequest"]["examples"]
    assert len(examples) >= 2
    for example in examples:
        answer = requests.post(f"{site.url}/forecast", json=example, timeout=60)
        assert answer.status_code == 200, answer.text
    assert {"/health", "/models", "/forecast", "/candles", "/scores"} <= schema["paths"].keys()


def test_metrics_are_prometheus_text_and_count_by_route(site: Site) -> None:
    def count(status: str) -> float:
        families = text_string_to_metric_families(site.get("/metrics").text)
        samples = [
            one for family in families for one in family.samples if one.name == "kronos_requests_total"
        ]
        wanted = {"route": "/candles", "method": "GET", "status": status}
        return sum(one.value for one in samples if one.labels == wanted)

    good, bad = count("200"), count("404")
    site.get("/candles", symbol="BTCUSDT")
    site.get("/candles", symbol="NOPE")
    assert (count("200"), count("404")) == (good + 1, bad + 1)


def test_without_the_token_only_the_page_and_health_are_answered(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="service.access")
    with serving(home, token=TOKEN) as site:
        assert site.get("/health").json()["token"] is True
        assert site.get("/").status_code == 200
        for path in (
            "/models",
            "/series",
            "/metrics",
            "/openapi.json",
            "/forecast?symbol=BTCUSDT",
            "/nowhere",
        ):
            for wrong in (None, TOKEN[:-1], TOKEN + "x"):
                answer = site.get(path, token=wrong)
                assert answer.status_code == 401, path
                assert answer.json()["error"].startswith("Expected a valid token")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert site.get("/forecast?symbol=BTCUSDT", token=TOKEN).status_code == 200
    assert "GET /forecast?symbol=BTCUSDT 200" in caplog.text
    assert TOKEN not in caplog.text


def test_a_home_without_nights_serves_candles_and_the_references_by_default_settings(tmp_path: Path) -> None:
    with serving(make_home(tmp_path, champion=False)) as site:
        assert site.get("/health").json()["status"] == "empty"
        assert site.get("/candles", symbol="BTCUSDT").status_code == 200
        assert site.get("/pulse", symbol="BTCUSDT").json()["predictor"] is None
        short = site.get("/forecast", symbol="BTCUSDT")
        assert short.status_code == 409
        assert "the newest 400 candles" in short.json()["error"]
        unknown = site.get("/forecast", symbol="BTCUSDT", recipe="demo")
        assert unknown.status_code == 404
        scores = site.get("/scores")
        assert scores.status_code == 404
        assert "kronos run" in scores.json()["error"]


def test_an_empty_home_says_what_to_do(tmp_path: Path) -> None:
    with serving(Home.at(tmp_path)) as site:
        assert site.get("/series").json()["series"] == []
        assert "kronos ingest" in site.get("/candles", symbol="BTCUSDT").json()["error"]


def test_a_new_candle_and_a_hole_are_seen_at_once(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    longer = full_candles(CANDLES + 4, seed=0)
    with serving(home) as site:
        assert site.forecast()["origin_ms"] == LAST_MS
        Lake(home.lake).upsert(BTC, longer[CANDLES : CANDLES + 1], source=Source("rest", "x"))
        assert site.forecast()["origin_ms"] == LAST_MS + HOUR_MS
        Lake(home.lake).upsert(BTC, longer[CANDLES + 3 :], source=Source("rest", "x"))
        answer = site.get("/forecast", symbol=BTC.name)
        assert answer.status_code == 409
        assert "kronos ingest" in answer.json()["error"]
        (series, _) = site.get("/series").json()["series"]
        assert [(hole["start_ms"], hole["candles"]) for hole in series["holes"]] == [
            (LAST_MS + 2 * HOUR_MS, 2)
        ]


def test_of_several_champions_the_one_trained_on_the_series_forecasts_it(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    newer = crown(home, seed=1, recipe="other")
    told = home.root / newer.predictor / "kronos_nightly.json"
    told.write_text(json.dumps({**json.loads(told.read_text()), "training": {"series": [DOGE.name]}}))
    with serving(home) as site:
        assert site.forecast()["recipe"] == "demo"
        assert site.forecast(symbol=DOGE.name)["recipe"] == "other"
        assert site.forecast(symbol=DOGE.name, recipe="demo")["trained_on_it"] is False
