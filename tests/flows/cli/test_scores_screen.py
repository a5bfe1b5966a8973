"""The live record of a recipe's champions: who is counted, what a night logs, and the warning of drift."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage.dataset import DatasetConfig
from storage.errors import LockedError, StorageError
from storage.forecasts import AS_ASKED, ForecastStore
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Source
from storage.registry import Champion, write_champion, write_night
from storage.schema import SeriesKey
from tasks.forecast import score_live
from tasks.live_record import live_board
from tests.support.candles import asked
from tests.support.datasets import HOUR_MS, START_MS, build, make_candles
from tests.support.quantiles import path_quantiles
from tests.support.snapshots import snapshot
from tests.support.terminal import Terminal, finish, start

DOGE = SeriesKey.parse("um:DOGEUSDT", "1h")
ROWS, HORIZON, SAMPLES = 3_000, 4, 30
SHORT = 110  # candles, of which training has the nineteen stretches that a yardstick takes
MODEL, STRANGER = "ab" * 8, "ee" * 8


@dataclass
class Record:
    """A home with a champion that was trained on hourly candles of DOGEUSDT."""

    home: Home
    candles: pl.DataFrame

    def ingest(self, candles: pl.DataFrame) -> None:
        Lake(self.home.lake).upsert(DOGE, candles, source=Source(kind="import", detail="test"))

    def forecast(
        self, row: int, model: str = MODEL, *, kept: bool = True, width: float = 0.006, known: float = 0.0
    ) -> None:
        """A fan around the close of that row, a little off, moved by a share of what will come; with its paths."""
        last = float(self.candles["close"][row])
        spread = width * np.sqrt(np.arange(1, HORIZON + 1))
        draws = np.random.default_rng(row).normal(0.001, 1, (SAMPLES, HORIZON))
        future = self.candles["close"].to_numpy()[row + 1 : row + 1 + HORIZON]
        coming = known * np.log(np.pad(future, (0, HORIZON - len(future)), constant_values=last) / last)
        closes = (last * np.exp(coming + draws * spread)).astype(np.float32)
        columns = {
            f"close_q{level:02d}": np.quantile(closes, level / 100, axis=0) for level in range(5, 100, 5)
        }
        times = START_MS + HOUR_MS * (row + np.arange(1, HORIZON + 1))
        frame = pl.DataFrame({"open_time": times, "step": np.arange(1, HORIZON + 1), **columns})
        frame = frame.with_columns(pl.col("open_time").cast(pl.Datetime("ms", "UTC")))
        origin = START_MS + HOUR_MS * row
        ForecastStore(self.home.forecasts).save(
            asked(DOGE, origin, model), frame, {"last_close": last}, closes=closes if kept else None
        )


@pytest.fixture
def record(tmp_path: Path) -> Record:
    home, candles = Home.at(tmp_path / "home"), make_candles(ROWS, seed=3)
    dataset = build({"um:DOGEUSDT": candles}, DatasetConfig(lookback=16, horizon=HORIZON), home.datasets)
    for part in ("tokenizer", "predictor"):
        (home.models / "demo" / "x" / part).mkdir(parents=True)
        (home.models / "demo" / "x" / part / "model.safetensors").write_bytes(b"")
    champion = Champion(
        tokenizer="models/demo/x/tokenizer", tokenizer_digest="cd" * 8, predictor="models/demo/x/predictor",
        predictor_digest=MODEL, night="n", mlflow_run="r", since="2024-01-01T00:00:00+00:00", reasons=(),
    )  # fmt: skip
    write_champion(home, "demo", champion)
    write_night(home, "demo", "n", {"dataset": {"path": str(dataset.path)}})
    found = Record(home, candles)
    found.ingest(candles)
    return found


def test_the_record_counts_who_ever_served_and_leaves_out_the_rest(record: Record) -> None:
    for row in range(2_000, 2_600, 20):
        record.forecast(row)
    record.forecast(2_100, STRANGER)
    record.forecast(ROWS - 2)
    live = live_board(record.home, "demo")
    assert (live.record.total.scored, live.record.total.waiting) == (30, 1)
    crps, last, inside = [], [], []
    for one in ForecastStore(record.home.forecasts).list(DOGE):
        row = (one.origin_ms - START_MS) // HOUR_MS
        if one.model_digest != MODEL or row > ROWS - 5:
            continue
        came, before = record.candles["close"].to_numpy()[row + 1 : row + 5], one.summary["last_close"]
        for step, close in enumerate(came.astype(np.float32).tolist()):
            drawn = [math.log(path[step] / before) for path in one.closes().tolist()]
            truth = math.log(close / before)
            spread = sum(abs(a - b) for a, b in combinations(drawn, 2)) / math.comb(SAMPLES, 2)
            crps.append(sum(abs(a - truth) for a in drawn) / SAMPLES - spread / 2)
            last.append(abs(truth))
            low, high = path_quantiles(drawn, [0.05, 0.95])
            inside.append(low <= truth <= high)
    assert live.record.total.crps_bps == pytest.approx(10_000 * np.mean(crps), rel=1e-6)
    assert live.record.total.skill == pytest.approx(1 - np.mean(crps) / np.mean(last), rel=1e-6)
    assert live.record.total.coverage_90 == pytest.approx(np.mean(inside), rel=1e-9)
    low, high = live.skill_interval
    assert low < live.record.total.skill < high
    metrics = live.metrics()
    assert (metrics["live/skill_low"], metrics["live/skill_high"]) == (low, high)
    assert (metrics["live/scored"], metrics["live/waiting"]) == (30, 1)
    assert metrics["live/skill"] == live.record.total.skill
    assert metrics["drift/um-DOGEUSDT/returns_psi"] < 0.25
    assert live_board(record.home, "demo").record.rows.equals(live.record.rows)


def test_a_market_that_has_changed_is_a_warning_that_names_the_remedy(
    record: Record, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.live_record.DRIFT_CANDLES", SHORT)
    assert score_live.fn(record.home, "demo").warnings == ()
    wild = make_candles(900, seed=9, start_ms=START_MS + HOUR_MS * ROWS)
    scale = (wild["close"] / 0.1) ** 4  # returns four times as large
    record.ingest(wild.with_columns(*(pl.col(name) * scale for name in ("open", "high", "low", "close"))).filter(
        pl.col("high") >= pl.col("low")
    ))  # fmt: skip
    with caplog.at_level("WARNING", logger="tasks.forecast"):
        live = score_live.fn(record.home, "demo")
    assert [(one.quantity, one.drift.drifted) for one in live.drifts] == [
        ("returns", True),
        ("volume", False),
    ]
    (warning,) = live.warnings
    assert warning.startswith("um:DOGEUSDT: returns drifted since the champion was trained (PSI ")
    assert "`kronos run --recipe demo`" in warning
    assert warning in caplog.text


def test_a_dataset_that_is_gone_is_said_and_the_scores_are_there_all_the_same(record: Record) -> None:
    record.forecast(2_000)
    (record.home.models / "demo" / "nights" / "n.json").unlink()
    live = live_board(record.home, "demo")
    assert live.record.total.scored == 1
    assert live.drifts == ()
    assert "expected the summary of night n" in live.warnings[0]


def test_a_night_under_way_measures_the_drift_since_its_own_training(record: Record) -> None:
    summary = record.home.models / "demo" / "nights" / "n.json"
    dataset = Path(json.loads(summary.read_text())["dataset"]["path"])
    expected = live_board(record.home, "demo").drifts
    summary.unlink()
    live = live_board(record.home, "demo", under_way={"n": dataset})
    assert (live.drifts, live.warnings) == (expected, ())
    assert len(expected) == 2


def test_kronos_scores_shows_the_record_over_time_and_the_drift(
    record: Record, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.home = record.home.root
    unknown = terminal("scores", "--recipe", "demo").out
    assert "no yardstick yet" in unknown
    assert "nothing is called drift" in unknown
    assert "as usual" not in unknown
    monkeypatch.setattr("tasks.live_record.DRIFT_CANDLES", SHORT)
    for row in range(2_000, 2_600, 20):
        record.forecast(row)
    outcome = terminal("scores", "--recipe", "demo")
    assert outcome.code == 0, outcome.err
    for shown in (
        "um:DOGEUSDT:1h",
        "Live forecasts of the champions of demo",
        "90% interval",
        "the last value.",
        "Over time",
        "2020-10-",
        "as usual",
    ):
        assert shown in outcome.out
    assert terminal("scores").out == outcome.out


@pytest.mark.parametrize("alone", [False, True], ids=["in this process", "in a process of its own"])
def test_kronos_scores_that_does_not_update_shows_the_same_and_leaves_the_home_as_it_was(
    record: Record, terminal: Terminal, alone: bool
) -> None:
    terminal.home = record.home.root
    for row in range(2_000, 2_600, 20):
        record.forecast(row)
    before = snapshot(record.home.root)
    arguments = ("scores", "--recipe", "demo", "--no-update")
    outcome = finish(start(terminal.home, *arguments)) if alone else terminal(*arguments)
    assert outcome.code == 0, outcome.err
    assert snapshot(record.home.root) == before
    assert "um:DOGEUSDT:1h" in outcome.out
    updated = terminal("scores", "--recipe", "demo")
    assert updated.out == terminal("scores", "--recipe", "demo", "--no-update").out
    assert alone or updated.out == outcome.out
    assert snapshot(record.home.root).keys() - before.keys() >= {f"forecasts/scores/{DOGE.slug}.parquet"}


def test_kronos_scores_writes_in_its_turn(
    record: Record, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On object storage nobody writes outside a turn."""
    terminal.home = record.home.root
    record.forecast(2_000)

    @contextmanager
    def taken(home: Home, purpose: str, *, run: str = "") -> Iterator[str]:
        raise LockedError(f"expected the home to be free, found another machine at work while {purpose}")
        yield ""

    monkeypatch.setattr(Home, "writing", taken)
    assert "while scoring forecasts" in terminal.refused("scores", "--recipe", "demo")
    assert terminal("scores", "--recipe", "demo", "--no-update").code == 0


def test_kronos_scores_says_what_is_missing(tmp_path: Path, terminal: Terminal, record: Record) -> None:
    terminal.home = tmp_path / "empty"
    assert "`kronos run` promotes the first one" in terminal.refused("scores")
    assert "Expected a champion of recipe btc_1h" in terminal.refused("scores", "-r", "btc_1h")
    terminal.home = record.home.root
    assert "Nobody who served demo has forecast yet" in terminal("scores").out
    record.forecast(ROWS - 1)
    assert "Nothing is due yet" in terminal("scores").out
    record.forecast(2_000)
    assert "1 scored forecasts are too few for an interval of the skill" in terminal("scores").out


def test_a_damaged_score_is_one_sentence(record: Record) -> None:
    record.forecast(2_000)
    path = record.home.forecasts / "scores" / f"{DOGE.slug}.parquet"
    path.parent.mkdir(parents=True)
    path.write_text("broken")
    with pytest.raises(StorageError, match="delete it, and they are computed again"):
        live_board(record.home, "demo")


@pytest.mark.parametrize(
    ("known", "width", "verdict"),
    [
        ((0.9, 0.9), 0.001, "is better than"),
        ((0.5, -0.5), 0.001, "cannot be told from"),
        ((0.0, 0.0), 0.0, "cannot be told from"),
        ((0.0, 0.0), 0.1, "is worse than"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_not_from_the_skill(
    record: Record, terminal: Terminal, known: tuple[float, float], width: float, verdict: str
) -> None:
    terminal.home = record.home.root
    for at, row in enumerate(range(2_000, 2_600, 20)):
        record.forecast(row, width=width, known=known[at % 2])
    live = live_board(record.home, "demo")
    low, high = live.skill_interval
    assert (low > 0, high < 0) == (verdict == "is better than", verdict == "is worse than")
    shown = " ".join(terminal("scores").out.split())
    assert f"what was served {verdict} the last value" in shown


def test_forecasts_from_before_paths_were_kept_are_told_apart_and_in_no_number(
    record: Record, terminal: Terminal
) -> None:
    terminal.home = record.home.root
    for row in range(2_000, 2_300, 20):
        record.forecast(row, kept=False)
    shown = " ".join(terminal("scores", "--no-update").out.split())
    assert "their CRPS is that of quantiles, 5 to 8 % higher" in shown
    for row in range(2_300, 2_600, 20):
        record.forecast(row)
    total = live_board(record.home, "demo").record.total
    assert (total.scored, total.apart, total.estimator) == (15, 15, "paths")
    assert "15 more forecasts, from before paths were kept, are in none of these" in " ".join(
        terminal("scores").out.split()
    )


def test_without_a_champion_the_record_is_that_of_the_references(record: Record, terminal: Terminal) -> None:
    terminal.home = record.home.root
    (record.home.models / "demo" / "champion.json").unlink()
    (record.home.models / "demo" / "history.jsonl").unlink(missing_ok=True)
    record.forecast(2_000, STRANGER)
    assert "Expected a champion in" in terminal.refused("scores")
    record.forecast(2_020, "references")
    for words in (("scores",), ("scores", "-r", "demo")):
        shown = " ".join(terminal(*words).out.split())
        assert "Live forecasts of the references" in shown
    (line,) = [one for one in terminal("scores").out.splitlines() if "um:DOGEUSDT:1h" in one]
    assert line.replace("│", " ").split()[1:3] == ["1", "0"], line


def test_what_was_drawn_otherwise_than_judged_is_said_to_be_in_no_number(
    record: Record, terminal: Terminal
) -> None:
    terminal.home = record.home.root
    record.forecast(2_000, MODEL + AS_ASKED)
    shown = " ".join(terminal("scores").out.split())
    assert "Nobody who served demo has forecast yet" in shown
    assert "1 more forecasts were drawn with another forecast.temperature, top_k or top_p" in shown
    record.forecast(2_020)
    shown = " ".join(terminal("scores").out.split())
    assert "1 more forecasts were drawn" in shown
