"""The live forecast: what is stored of the sampled paths, which series are left out, and what people take away."""

import json
import math
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from exchange.replay import synthetic_market
from kronos_model.config import PRESETS
from kronos_model.evaluation.stored_scores import score_stored
from kronos_model.files import model_digest
from kronos_model.forecaster import Forecaster
from kronos_model.hub import scratch_pair
from kronos_model.postprocess import PostProcess
from kronos_model.sampling import SamplingConfig
from storage.errors import StorageError
from storage.forecasts import ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Hole, Ledger, Source
from storage.schema import SeriesKey
from storage.scoreboard import Scoreboard
from tasks.forecast import IncompleteForecast, complete, export_forecasts, forecast
from tasks.refs import ForecastsRef, PairRef
from tests.support.quantiles import path_quantiles

START_MS = int(datetime(2024, 7, 1, tzinfo=UTC).timestamp() * 1000)
HOUR_MS = 3_600_000
KEYS = [SeriesKey.parse(name, "1h") for name in ("spot:BTCUSDT", "um:ETHUSDT", "um:DOGEUSDT")]
CANDLES = synthetic_market(KEYS, start_ms=START_MS, count=60, seed=7)
SOURCE = Source(kind="import", detail="synthetic")
LOOKBACK, HORIZON, SAMPLES = 32, 4, 6


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    for key, candles in CANDLES.items():
        Lake(home.lake).upsert(key, candles, source=SOURCE)
    return home


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairRef:
    made = scratch_pair(PRESETS["tiny"], tmp_path_factory.mktemp("pair"), seed=1)
    return PairRef(
        tokenizer=str(made.tokenizer),
        tokenizer_digest=made.tokenizer_digest,
        predictor=str(made.predictor),
        predictor_digest=made.predictor_digest,
        origin="champion since 2024-07-01",
    )


def run(home: Home, pair: PairRef | None, **changed: Any) -> ForecastsRef:
    options: dict[str, Any] = {"lookback": LOOKBACK, "horizon": HORIZON, "seed": 3}
    options |= {"config": SamplingConfig(samples=SAMPLES), **changed}
    return forecast.fn(home, KEYS, pair, **options)


def test_what_is_stored_is_what_the_sampled_paths_say(home: Home, pair: PairRef) -> None:
    done = run(home, pair)
    assert done.failures == ()
    assert done.seconds > 0
    for key, one in zip(KEYS, done.forecasts, strict=True):
        candles = CANDLES[key].tail(LOOKBACK)
        features = candles.select("open", "high", "low", "close", "volume", "quote_volume").to_numpy()
        opened = candles["open_time"].dt.epoch("ms").to_numpy()
        future = opened[-1] + HOUR_MS * np.arange(1, HORIZON + 1)
        paths = (
            Forecaster.load(Path(pair.tokenizer), Path(pair.predictor))
            .paths(
                features.astype(np.float32)[None],
                opened[None],
                future[None],
                [key.name],
                config=SamplingConfig(samples=SAMPLES),
                seed=3,
            )
            .paths[0]
            .astype(np.float64)
        )
        stored = ForecastStore(home.forecasts).list(key)[-1]
        frame, summary = stored.frame(), stored.summary
        np.testing.assert_array_equal(stored.closes(), paths[..., 3].astype(np.float32))
        assert frame["open_time"].dt.epoch("ms").to_list() == future.tolist()
        assert stored.origin_ms == one.origin_ms == opened[-1]
        assert stored.model_digest == one.model_digest == model_digest(Path(pair.predictor))
        assert summary["tokenizer_digest"] == model_digest(Path(pair.tokenizer))
        last = float(np.float32(features[-1, 3]))
        ends = [math.log(path[-1, 3] / last) for path in paths]
        middle = sum(ends) / SAMPLES
        assert summary["volatility"] == pytest.approx(
            math.sqrt(sum((end - middle) ** 2 for end in ends) / SAMPLES), rel=1e-9
        )
        assert summary["probability_up"] == sum(path[-1, 3] > last for path in paths) / SAMPLES
        mean_return = sum(path[-1, 3] / last - 1 for path in paths) / SAMPLES
        assert summary["expected_return"] == pytest.approx(mean_return, rel=1e-9, abs=1e-15)
        for step in range(HORIZON):
            closes = paths[:, step, 3]
            assert frame["close_q05"][step] == pytest.approx(path_quantiles(closes, 0.05), rel=1e-9)
            assert frame["close_q95"][step] == pytest.approx(path_quantiles(closes, 0.95), rel=1e-9)
            assert frame["close_mean"][step] == pytest.approx(closes.mean(), rel=1e-9)
            assert frame["probability_up"][step] == sum(closes > last) / SAMPLES
        assert Path(one.figure).read_bytes().startswith(b"\x89PNG")


def beside(pair: PairRef, folder: Path, name: str, told: dict[str, Any]) -> PairRef:
    """The same predictor with one more file in its folder."""
    shutil.copytree(pair.predictor, folder)
    (folder / name).write_text(json.dumps(told))
    return replace(pair, predictor=str(folder), predictor_digest=model_digest(folder))


def test_the_calibration_beside_an_older_predictor_is_applied(
    home: Home, pair: PairRef, tmp_path: Path
) -> None:
    told = {"version": 2, "levels": [0.9], "factors": [[2.0, 3.0]], "origins": 20, "samples": SAMPLES}
    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    calibrated = beside(pair, tmp_path / "calibrated", "calibration.json", told | drawn)
    plain, scaled = run(home, pair), run(home, calibrated)
    assert all(one.made for one in (*plain.forecasts, *scaled.forecasts))
    for before, after in zip(plain.forecasts, scaled.forecasts, strict=True):
        frames = [pl.read_parquet(Path(one.path) / "forecast.parquet") for one in (before, after)]
        for step, factor in enumerate((2.0, 3.0, 3.0, 3.0)):
            low, high = (
                [math.log(frame[f"close_q{level}"][step] / frame["close_q50"][step]) for frame in frames]
                for level in ("10", "90")
            )
            assert low[1] == pytest.approx(factor * low[0], rel=0.02)
            assert high[1] == pytest.approx(factor * high[0], rel=0.02)


def blended(pair: PairRef, folder: Path, **changed: Any) -> PairRef:
    """The same predictor, pooled with references and drawn at another temperature."""
    plain = PostProcess(
        horizon=HORIZON,
        lookback=LOOKBACK,
        interval="1h",
        temperature=0.7,
        top_k=0,
        top_p=1.0,
        location=(0.0,),
        members=("network", "ewma", "bootstrap"),
        weights=(0.5, 0.25, 0.25),
        spread=None,
        spread_alone=None,
        origins=40,
        samples=20,
    )
    shutil.copytree(pair.predictor, folder)
    replace(plain, **changed).save(folder)
    return replace(pair, predictor=str(folder), predictor_digest=model_digest(folder))


def test_a_blended_champion_forecasts_as_it_was_judged_and_its_question_says_so(
    home: Home, pair: PairRef, tmp_path: Path
) -> None:
    one = blended(pair, tmp_path / "one")
    other = blended(pair, tmp_path / "other", weights=(0.4, 0.3, 0.3))
    first, second = run(home, one), run(home, other)
    assert all(made.made for made in (*first.forecasts, *second.forecasts)), (
        "another blend is another question"
    )
    facts = json.loads((Path(first.forecasts[0].path) / "summary.json").read_text())
    assert facts["model_digest"] == facts["question"]["model_digest"] == one.predictor_digest
    assert facts["question"]["sampling"]["temperature"] == 0.7
    assert facts["summary"]["weights"] == {"network": 0.5, "ewma": 0.25, "bootstrap": 0.25}
    assert not any(made.made for made in run(home, one).forecasts)


def test_other_sampling_settings_than_those_judged_give_the_network_alone_and_a_warning(
    home: Home, pair: PairRef, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = SamplingConfig(samples=SAMPLES, temperature=0.5)
    with caplog.at_level("WARNING"):
        found = run(home, blended(pair, tmp_path / "one"), config=asked, as_judged=False)
    assert "the network is served as it draws" in caplog.text
    raw = run(home, pair, config=asked)
    for one, plain in zip(found.forecasts, raw.forecasts, strict=True):
        assert (one.close_low, one.close_high) == (plain.close_low, plain.close_high)


@pytest.mark.parametrize("asked", [{"temperature": 0.5}, {"top_p": 0.3}, {"top_k": 2}])
def test_what_was_asked_otherwise_than_judged_is_not_in_the_champions_record(
    home: Home, pair: PairRef, tmp_path: Path, asked: dict[str, Any]
) -> None:
    one = blended(pair, tmp_path / "one")
    run(home, one, config=SamplingConfig(samples=SAMPLES, **asked), as_judged=False)
    board = Scoreboard(home, score_stored)
    assert [board.standing(key, {one.predictor_digest}).waiting for key in KEYS] == [0, 0, 0]
    run(home, one)
    assert [board.standing(key, {one.predictor_digest}).waiting for key in KEYS] == [1, 1, 1]
    assert [board.standing(key).waiting for key in KEYS] == [2, 2, 2]


def test_a_candle_before_the_lookback_counts_for_the_references_alone(
    home: Home, pair: PairRef, tmp_path: Path
) -> None:
    one = blended(pair, tmp_path / "one")
    for model in (one, pair, None):
        run(home, model)
    changed = CANDLES[KEYS[0]].with_columns(
        close=pl.when(pl.int_range(len(CANDLES[KEYS[0]])) == 5).then("high").otherwise("close")
    )
    assert not changed.equals(CANDLES[KEYS[0]])
    Lake(home.lake).upsert(KEYS[0], changed, source=SOURCE)
    assert [made.made for made in run(home, pair).forecasts] == [False, False, False]
    for model in (one, None):
        assert [made.made for made in run(home, model).forecasts] == [True, False, False]


def test_without_a_model_the_references_forecast_and_their_left_out_member_is_told(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        done = run(home, None)
    assert "Of the references, har was left out: it needs a lookback of 64 candles, found 32." in caplog.text
    assert "candles in " in caplog.text
    assert caplog.text.rstrip().endswith("s by the references")
    assert {(one.model, one.model_digest) for one in done.forecasts} == {("references", "references")}
    hotter = run(home, None, config=SamplingConfig(samples=SAMPLES, temperature=0.5))
    assert not any(one.made for one in hotter.forecasts), "no network, no temperature"
    assert all(one.made for one in run(home, None, seed=9).forecasts)


def test_all_series_are_sampled_in_one_call(
    home: Home, pair: PairRef, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, real = [], Forecaster.paths

    def counted(self: Forecaster, features: Any, *others: Any, **options: Any) -> Any:
        rows.append(len(features))
        return real(self, features, *others, **options)

    monkeypatch.setattr(Forecaster, "paths", counted)
    with caplog.at_level("INFO"):
        run(home, pair)
    assert rows == [3]
    assert "Sampled 3 series x 6 paths x 4 candles in " in caplog.text


def test_a_stored_forecast_is_not_made_again_and_a_new_candle_adds_one(home: Home, pair: PairRef) -> None:
    first = run(home, pair)
    files = {path: path.read_bytes() for path in home.forecasts.rglob("*.parquet")}
    again = run(home, pair)
    assert [one.made for one in first.forecasts + again.forecasts] == [True] * 3 + [False] * 3
    assert again.seconds == 0
    longer = synthetic_market(KEYS, start_ms=START_MS, count=61, seed=7)
    Lake(home.lake).upsert(KEYS[0], longer[KEYS[0]], source=SOURCE)
    assert [one.made for one in run(home, pair).forecasts] == [True, False, False]
    assert len(ForecastStore(home.forecasts).list(KEYS[0])) == 2
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"horizon": 3},
        {"lookback": 31},
        {"config": SamplingConfig(samples=SAMPLES + 1)},
        {"config": SamplingConfig(samples=SAMPLES, temperature=0.5)},
        {"config": SamplingConfig(samples=SAMPLES, top_p=0.9)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_question_gets_another_forecast_and_another_file(
    home: Home, pair: PairRef, other: dict[str, Any], tmp_path: Path
) -> None:
    first, second = run(home, pair), run(home, pair, **other)
    assert all(one.made for one in (*first.forecasts, *second.forecasts))
    for number, done in enumerate((first, second)):
        export_forecasts(home, done.forecasts, tmp_path / f"{number}.csv")
    assert (tmp_path / "0.csv").read_bytes() != (tmp_path / "1.csv").read_bytes()
    assert run(home, pair).forecasts == tuple(replace(one, made=False) for one in first.forecasts)


def test_how_fast_paths_are_drawn_is_no_other_question(home: Home, pair: PairRef) -> None:
    run(home, pair)
    again = run(home, pair, config=SamplingConfig(samples=SAMPLES, rows=7, acceleration="compile"))
    assert not any(one.made for one in again.forecasts)


def test_an_update_of_the_code_that_draws_is_another_question(
    home: Home, pair: PairRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(home, pair)
    assert not any(one.made for one in run(home, pair).forecasts)
    monkeypatch.setattr("tasks.forecast.code_digest", lambda: "11" * 8)
    again = run(home, pair)
    assert all(one.made for one in again.forecasts)
    facts = json.loads((Path(again.forecasts[0].path) / "summary.json").read_text())
    assert facts["question"]["code"] == "11" * 8


def test_what_was_asked_otherwise_than_the_recipe_says_so_at_rest(home: Home, pair: PairRef) -> None:
    for as_recipe, seed in ((True, 3), (False, 4)):
        made = run(home, pair, seed=seed, as_recipe=as_recipe).forecasts[0]
        assert made.samples == SAMPLES
        assert ForecastStore(home.forecasts).read(KEYS[0], Path(made.path)).summary["as_recipe"] is as_recipe


def test_a_repaired_candle_makes_another_forecast(home: Home, pair: PairRef) -> None:
    run(home, pair)
    changed = CANDLES[KEYS[0]].with_columns(pl.col("volume") * 2)
    Lake(home.lake).upsert(KEYS[0], changed, source=SOURCE)
    assert [one.made for one in run(home, pair).forecasts] == [True, False, False]


def test_a_series_with_a_hole_in_its_lookback_is_left_out_with_the_reason(
    pair: PairRef, tmp_path: Path
) -> None:
    home = Home.at(tmp_path / "holed")
    for key, candles in CANDLES.items():
        kept = pl.concat([candles.head(50), candles.tail(8)]) if key == KEYS[1] else candles
        Lake(home.lake).upsert(key, kept, source=SOURCE)
    done = run(home, pair)
    assert [one.series for one in done.forecasts] == ["spot:BTCUSDT", "um:DOGEUSDT"]
    (failure,) = done.failures
    assert failure.series == "um:ETHUSDT"
    assert "Expected the newest 32 candles of um:ETHUSDT:1h without a hole" in failure.reason
    assert "kronos ingest" in failure.reason
    with pytest.raises(
        IncompleteForecast, match="1 of 3 series not forecast, the others are stored: um:ETH"
    ) as told:
        complete(done)
    assert told.value.forecasts == done


def test_a_stale_series_is_left_out_with_the_time_of_its_last_candle(home: Home, pair: PairRef) -> None:
    last_ms = START_MS + 59 * HOUR_MS
    tail = Hole(start_ms=last_ms + HOUR_MS, end_ms=last_ms + 50 * HOUR_MS, candles=49, status="stale")
    Ledger(home.lake).set_tail(KEYS[2], tail)
    (failure,) = run(home, pair).failures
    assert failure.series == "um:DOGEUSDT"
    assert "found no candle after 2024-07-03 11:00:00 UTC" in failure.reason
    assert "up to 2024-07-05 13:00:00 UTC" in failure.reason
    assert "halted or delisted" in failure.reason


def test_no_series_at_all_is_told_as_such(home: Home, pair: PairRef) -> None:
    done = run(home, pair, lookback=61)
    assert done.forecasts == ()
    assert done.seconds == 0
    with pytest.raises(IncompleteForecast, match="3 of 3 series not forecast, none was made"):
        complete(done)


def test_a_complete_forecast_passes(home: Home, pair: PairRef) -> None:
    done = run(home, pair)
    assert complete(done) is done


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_what_is_exported_is_what_is_stored(home: Home, pair: PairRef, suffix: str, tmp_path: Path) -> None:
    target = tmp_path / "out" / f"forecasts{suffix}"
    done = run(home, pair)
    assert export_forecasts(home, done.forecasts, target) == 3 * HORIZON
    stored = {key: ForecastStore(home.forecasts).list(key)[-1] for key in KEYS}
    if suffix == ".json":
        objects = json.loads(target.read_text())
        assert [f"{one['market']}:{one['symbol']}:{one['interval']}" for one in objects] == list(
            map(str, KEYS)
        )
        for key, one in zip(KEYS, objects, strict=True):
            found = stored[key]
            assert found is not None
            assert one["summary"] == found.summary
            assert [step["close_q50"] for step in one["steps"]] == found.frame()["close_q50"].to_list()
            assert one["steps"][0]["open_time"] == found.origin_ms + HOUR_MS
        return
    rows = pl.read_parquet(target) if suffix == ".parquet" else pl.read_csv(target, try_parse_dates=True)
    for key in KEYS:
        found = stored[key]
        assert found is not None
        mine = rows.filter((pl.col("market") == key.market) & (pl.col("symbol") == key.symbol))
        assert mine["close_q50"].to_list() == found.frame()["close_q50"].to_list()
        assert (
            mine["open_time"].dt.epoch("ms").to_list() == found.frame()["open_time"].dt.epoch("ms").to_list()
        )
        assert set(mine["model_digest"]) == {pair.predictor_digest}


@pytest.mark.parametrize(
    ("name", "said"), [("forecasts.xlsx", "ends in .csv, .json, .parquet"), ("", "file")]
)
def test_a_file_of_another_kind_is_refused(
    home: Home, pair: PairRef, name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=said):
        export_forecasts(home, run(home, pair).forecasts, tmp_path / name)
