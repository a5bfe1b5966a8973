"""Live forecasts are scored once, when their truth is in the lake, and never again."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from storage.errors import StorageError
from storage.forecasts import AS_ASKED, ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Source
from storage.parquet import read_parquet, write_parquet
from storage.registry import Champion, write_champion
from storage.schema import SeriesKey
from storage.scoreboard import Scoreboard, by_period, live_record, score_due, tally
from tests.support.candles import BTC, HOUR_MS, JUNE_MS, asked, full_candles
from tests.support.snapshots import snapshot

MODEL, OTHER = "ab" * 8, "cd" * 8
SOURCE = Source(kind="import", detail="test")
HORIZON = 4


@dataclass
class Truth:
    """A scorer whose scores are the closes it was given, so that a test sees what was joined."""

    estimator: str
    crps: np.ndarray
    last_value: np.ndarray
    covered_50: np.ndarray
    covered_90: np.ndarray


def echo(
    levels: np.ndarray,
    quantiles: np.ndarray,
    closes: np.ndarray | None,
    came: np.ndarray,
    last_close: float,
    member: np.ndarray | None,
) -> Truth:
    inside = np.where(np.isnan(came), np.nan, 1.0)
    estimator = "quantiles" if closes is None else "paths"
    return Truth(estimator, crps=came, last_value=2 * came, covered_50=inside, covered_90=inside)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


@cache
def market() -> pl.DataFrame:
    return full_candles(2_400)


def candles(first: int, count: int) -> pl.DataFrame:
    """Hourly candles that open from June's hour `first` on; a longer range has the same ones."""
    return market().slice(first, count)


def close(hour: int) -> float:
    return float(candles(hour, 1)["close"][0])


def ingest(home: Home, first: int, count: int) -> None:
    Lake(home.lake).upsert(BTC, candles(first, count), source=SOURCE)


def forecast(
    home: Home,
    hour: int,
    model: str = MODEL,
    key: SeriesKey = BTC,
    *,
    closes: np.ndarray | None = None,
    seed: int = 0,
    told: dict[str, Any] | None = None,
    now_ms: int = 0,
) -> str:
    """Store a forecast after the candle of that hour; its name."""
    origin = JUNE_MS + hour * HOUR_MS
    times = pl.Series("open_time", [origin + HOUR_MS * step for step in range(1, HORIZON + 1)])
    columns = {f"close_q{level:02d}": np.full(HORIZON, 100.0 + level) for level in range(5, 100, 5)}
    frame = pl.DataFrame(
        {"open_time": times.cast(pl.Datetime("ms", "UTC")), "step": range(1, HORIZON + 1), **columns}
    )
    store, summary = (
        ForecastStore(home.forecasts, now_ms=lambda: now_ms),
        {"last_close": 100.0, **(told or {})},
    )
    return store.save(asked(key, origin, model, seed=seed), frame, summary, closes=closes).name


def test_a_forecast_waits_until_its_whole_horizon_is_in_the_lake(home: Home) -> None:
    board, name = Scoreboard(home, echo), forecast(home, 9)
    ingest(home, 0, 13)
    assert (board.update(BTC), board.standing(BTC).waiting) == (0, 1)
    ingest(home, 13, 1)
    assert (board.update(BTC), board.standing(BTC).waiting) == (1, 0)
    (row,) = board.standing(BTC).rows.iter_rows(named=True)
    assert (row["forecast"], row["model_digest"]) == (name, MODEL)
    assert row["origin"].isoformat() == "2024-06-01T09:00:00+00:00"
    assert row["crps"] == [close(hour) for hour in (10, 11, 12, 13)]


def test_the_same_again_writes_nothing_and_what_comes_later_is_added(home: Home) -> None:
    board = Scoreboard(home, echo)
    forecast(home, 9)
    ingest(home, 0, 30)
    assert board.update(BTC) == 1
    path = home.forecasts / "scores" / f"{BTC.slug}.parquet"
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert board.update(BTC) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    first = board.standing(BTC).rows
    changed = candles(0, 30).with_columns(pl.col("close", "high") * 1.5)
    Lake(home.lake).upsert(BTC, changed, source=SOURCE)
    forecast(home, 11)
    forecast(home, 3)
    assert Scoreboard(home, echo).update(BTC) == 2
    rows = board.standing(BTC).rows
    assert rows["origin"].dt.hour().to_list() == [3, 9, 11]
    assert rows.filter(pl.col("forecast").is_in(first["forecast"].to_list())).equals(first), "a score stays"


def test_who_reads_gets_what_is_due_as_it_will_be_kept_and_writes_nothing(home: Home) -> None:
    board = Scoreboard(home, echo)
    for hour, model in ((9, MODEL), (10, OTHER)):
        forecast(home, hour, model)
    ingest(home, 0, 20)
    board.update(BTC)
    for hour, model in ((11, MODEL), (3, OTHER), (40, MODEL)):
        forecast(home, hour, model)
    before = snapshot(home.root)
    due, mine = board.standing(BTC), board.standing(BTC, {MODEL})
    assert snapshot(home.root) == before
    assert due.rows["origin"].dt.hour().to_list() == [3, 9, 10, 11]
    assert (due.waiting, mine.waiting, board.standing(BTC, {OTHER}).waiting) == (1, 1, 0)
    assert mine.rows.equals(due.rows.filter(pl.col("model_digest") == MODEL))
    seen: list[float] = []

    def counted(*known: Any) -> Truth:
        seen.append(known[4])
        return echo(*known)

    patient = Scoreboard(home, counted)
    for models in ({MODEL}, None, {OTHER}, None):
        patient.standing(BTC, models)
    assert patient.standing(BTC).rows.equals(due.rows)
    assert len(seen) == 2, "each that is due is scored once while the board lives"
    assert score_due(board) == 2
    assert board.standing(BTC).rows.equals(due.rows)
    assert read_parquet(home.forecasts / "scores" / f"{BTC.slug}.parquet").equals(due.rows)


def test_a_hole_is_waited_for_a_day_and_then_the_other_steps_count(home: Home) -> None:
    board = Scoreboard(home, echo)
    forecast(home, 9)
    for first, count in ((0, 12), (13, 24)):  # the candle of 12:00 is missing
        ingest(home, first, count)
    assert (board.update(BTC), board.standing(BTC).waiting) == (0, 1)
    ingest(home, 37, 1)
    assert board.update(BTC) == 1
    (row,) = board.standing(BTC).rows.iter_rows(named=True)
    assert row["crps"] == [close(10), close(11), None, close(13)]
    assert tally(board.standing(BTC).rows).coverage_90 == 1.0


def test_a_forecast_whose_truth_never_came_is_done_with_and_counts_for_nothing(home: Home) -> None:
    board = Scoreboard(home, echo)
    forecast(home, 9)
    ingest(home, 0, 10)
    ingest(home, 40, 10)
    assert board.update(BTC) == 1
    assert board.standing(BTC).waiting == 0
    found = tally(board.standing(BTC).rows)
    assert (found.scored, found.crps_bps, found.skill) == (1, None, None)


def test_models_are_told_apart(home: Home) -> None:
    board = Scoreboard(home, echo)
    forecast(home, 9)
    forecast(home, 9, OTHER)
    forecast(home, 28, OTHER)
    ingest(home, 0, 30)
    assert board.update(BTC) == 2
    assert [
        len(board.standing(BTC, models).rows) for models in (None, {MODEL}, {OTHER}, {MODEL, OTHER}, set())
    ] == [
        2,
        1,
        1,
        2,
        0,
    ]
    assert [board.standing(BTC, models).waiting for models in (None, {MODEL}, {OTHER})] == [1, 0, 1]


def test_a_series_without_candles_or_forecasts_has_nothing_to_score(home: Home) -> None:
    board = Scoreboard(home, echo)
    assert (board.update(BTC), board.standing(BTC).waiting, len(board.standing(BTC).rows)) == (0, 0, 0)
    forecast(home, 9)
    assert (board.update(BTC), board.standing(BTC).waiting) == (0, 1)


def test_a_damaged_file_of_scores_is_named_with_its_remedy(home: Home) -> None:
    path = home.forecasts / "scores" / f"{BTC.slug}.parquet"
    path.parent.mkdir(parents=True)
    path.write_text("broken")
    with pytest.raises(StorageError, match=rf"expected scores in {path}, found a damaged file; delete it"):
        Scoreboard(home, echo).update(BTC)


def test_a_tally_pools_all_steps_and_periods_add_up_to_it(home: Home) -> None:
    board = Scoreboard(home, echo)
    for hour in range(0, 2_000, 100):
        forecast(home, hour)
    ingest(home, 0, 2_300)
    assert board.update(BTC) == 20
    rows = board.standing(BTC).rows
    found = tally(rows, waiting=3)
    closes = [close(hour + step) for hour in range(0, 2_000, 100) for step in range(1, 5)]
    assert found.crps_bps == pytest.approx(10_000 * np.mean(closes), rel=1e-12)
    assert found.skill == pytest.approx(0.5)
    assert (found.scored, found.waiting) == (20, 3)
    periods = by_period(rows)
    assert 1 < len(periods) <= 16
    assert periods["scored"].sum() == 20
    weighted = (periods["crps_bps"] * periods["scored"]).sum() / 20
    assert weighted == pytest.approx(found.crps_bps, rel=1e-12)
    assert periods["period"].is_sorted()


def test_nothing_scored_has_no_numbers(home: Home) -> None:
    rows = Scoreboard(home, echo).standing(BTC).rows
    assert (tally(rows).crps_bps, tally(rows).scored) == (None, 0)
    assert by_period(rows).is_empty()


PATHS = np.full((3, HORIZON), 101.0, np.float32)


def serve(home: Home, model: str = MODEL) -> None:
    folders = {part: f"models/demo/x/{part}" for part in ("tokenizer", "predictor")}
    for folder in folders.values():
        (home.root / folder).mkdir(parents=True)
        (home.root / folder / "model.safetensors").write_bytes(b"")
    facts = {"night": "n", "mlflow_run": "r", "since": "2024-01-01T00:00:00+00:00", "reasons": ()}
    champion = Champion(tokenizer_digest="cd" * 8, predictor_digest=model, **folders, **facts)
    write_champion(home, "demo", champion)


def test_scores_written_before_paths_were_kept_are_of_quantiles_and_stay(home: Home) -> None:
    board = Scoreboard(home, echo)
    forecast(home, 9)
    ingest(home, 0, 30)
    board.update(BTC)
    path = home.forecasts / "scores" / f"{BTC.slug}.parquet"
    old = read_parquet(path).drop("estimator").with_columns(crps=pl.lit([7.0] * HORIZON))
    write_parquet(old, path)
    forecast(home, 11, closes=PATHS)
    assert Scoreboard(home, echo).standing(BTC).rows["estimator"].to_list() == ["quantiles", "paths"]
    assert Scoreboard(home, echo).update(BTC) == 1
    rows = read_parquet(path)
    assert rows["estimator"].to_list() == ["quantiles", "paths"]
    assert rows["crps"][0].to_list() == [7.0] * HORIZON


def test_the_record_counts_forecasts_of_one_estimator_and_says_how_many_it_leaves_out(home: Home) -> None:
    serve(home)
    for hour in (3, 5, 9):
        forecast(home, hour)
    ingest(home, 0, 60)
    before = live_record(Scoreboard(home, echo), "demo").total
    assert (before.scored, before.estimator, before.apart) == (3, "quantiles", 0)
    forecast(home, 20, closes=PATHS)
    forecast(home, 22, closes=PATHS)
    record = live_record(Scoreboard(home, echo), "demo")
    for found in (record.total, record.series[BTC]):
        assert (found.scored, found.estimator, found.apart, found.waiting) == (2, "paths", 3, 0)
        closes = [close(hour + step) for hour in (20, 22) for step in range(1, 5)]
        assert found.crps_bps == pytest.approx(10_000 * np.mean(closes), rel=1e-12)
    assert record.rows["estimator"].to_list() == ["paths", "paths"]
    mixed = Scoreboard(home, echo).standing(BTC).rows
    for pooled in (tally, by_period):
        with pytest.raises(ValueError, match="expected scores of one estimator, found paths and quantiles"):
            pooled(mixed)


@pytest.mark.parametrize("kept", [False, True], ids=["computed for who reads", "kept"])
def test_an_origin_counts_once_with_the_recipes_own_settings_or_else_as_it_was_first_made(
    home: Home, kept: bool
) -> None:
    serve(home)
    asked_first = forecast(home, 3, seed=1, told={"as_recipe": False}, now_ms=1, closes=PATHS)
    own = forecast(home, 3, seed=2, told={"as_recipe": True}, now_ms=2, closes=PATHS)
    made = {
        forecast(home, 5, seed=seed, told={"as_recipe": False}, now_ms=9 - seed, closes=PATHS): seed
        for seed in range(4)
    }
    waiting = [forecast(home, 90, seed=seed, now_ms=seed) for seed in range(3)]
    ingest(home, 0, 60)
    if kept:
        assert score_due(Scoreboard(home, echo)) == 6
    record = live_record(Scoreboard(home, echo), "demo")
    assert (record.total.scored, record.total.waiting, len(waiting)) == (2, 1, 3)
    first, second = record.rows["forecast"].to_list()
    assert first == own != asked_first
    assert made[second] == 3, "the first made"


def test_scores_of_an_older_version_are_read_and_count_once(home: Home) -> None:
    serve(home)
    for seed in range(3):
        forecast(home, 3, seed=seed, now_ms=seed)
    ingest(home, 0, 60)
    score_due(Scoreboard(home, echo))
    path = home.forecasts / "scores" / f"{BTC.slug}.parquet"
    write_parquet(read_parquet(path).drop("made", "as_recipe"), path)
    assert live_record(Scoreboard(home, echo), "demo").total.scored == 1
    forecast(home, 5)
    assert score_due(Scoreboard(home, echo)) == 1
    assert live_record(Scoreboard(home, echo), "demo").total.scored == 2


def test_what_was_drawn_otherwise_than_judged_is_counted_apart(home: Home) -> None:
    serve(home)
    for hour, model in ((3, MODEL), (3, MODEL + AS_ASKED), (90, MODEL + AS_ASKED), (5, OTHER + AS_ASKED)):
        forecast(home, hour, model)
    ingest(home, 0, 60)
    record = live_record(Scoreboard(home, echo), "demo")
    assert (record.total.scored, record.as_asked) == (1, 2)
