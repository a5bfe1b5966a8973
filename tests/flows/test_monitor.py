"""`kronos monitor`: a real process that stops when told, what it shows, and its flow."""

import io
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from polars.testing import assert_frame_equal
from rich.console import Console

from exchange.monitor_state import Candle, MonitorState, SeriesState, Ticker
from exchange.replay import ReplayClock, ReplayExchange, synthetic_market
from flows.cli.monitor_screen import live_table, view, watch
from flows.cli.program import cli
from flows.config import ConfigError
from flows.monitor import monitor
from flows.site.signals import stop_on_signals
from flows.watching import seconds, watch_config
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey
from tasks.monitor_log import LogLines

ROOT = Path(__file__).resolve().parents[2]
MINUTE = 60_000
START = 1_700_006_400_000
UM = SeriesKey.parse("um:DOGEUSDT", "1m")
MARKET = synthetic_market([UM], start_ms=START, count=3_000, seed=3)
ROW = 100


@pytest.fixture
def exchange() -> Iterator[ReplayExchange]:
    with ReplayExchange(MARKET, clock=ReplayClock(START + ROW * MINUTE, speed=600)) as running:
        yield running


def addresses(exchange: ReplayExchange) -> dict[str, str]:
    stream = exchange.stream_config
    return {"exchange.um_url": exchange.url, "stream.um_stream_url": stream.um_stream_url}


def assert_valid(lake: Path) -> int:
    """Every candle from the first on, each once and as the exchange has it; how many there are."""
    candles = Lake(lake).read(UM)
    first = (int(candles["open_time"].dt.epoch("ms")[0]) - START) // MINUTE
    assert_frame_equal(candles, MARKET[UM][first : first + len(candles)], check_exact=True)
    assert not list(lake.rglob(".*.tmp*"))
    return len(candles)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_stop_leaves_a_whole_lake_and_says_so(
    exchange: ReplayExchange, tmp_path: Path, number: signal.Signals
) -> None:
    csv, latest = tmp_path / "candles.csv", tmp_path / "latest.json"
    command = [sys.executable, "-m", "flows.cli", "--home", str(tmp_path / "home"), "monitor"]
    command += ["--series", UM.name, "--interval", "1m", "--backfill", "30m", "--every", "5s"]
    command += ["--csv", str(csv), "--json", str(latest)]
    for name, value in addresses(exchange).items():
        command += ["--set", f"{name}={value}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 60
    while not csv.exists() or csv.read_bytes().count(b"\n") < 38:  # the back-fill's and some more
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert f"Stopped by {number.name}: " in out
    assert "streaming" in errors
    rows = assert_valid(tmp_path / "home" / "lake")
    assert csv.read_bytes().endswith(b"\n")
    assert pl.read_csv(csv).height == rows
    assert json.loads(latest.read_text())["series"][0]["connection"] == "stopped"


def test_the_flow_ends_by_itself_after_its_duration(
    exchange: ReplayExchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: None
) -> None:
    monkeypatch.setenv("KRONOS_HOME", str(tmp_path))
    state = monitor(
        [UM.name], interval="1m", backfill="30m", duration="2s", settings=dict(addresses(exchange))
    )
    assert state.series[0].connection == "stopped"
    assert assert_valid(tmp_path / "lake") == state.series[0].added > 30


def test_what_a_replay_prints_is_a_monitor_that_sees_candles_close(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "replay", "--series", "um:DOGEUSDT", "--interval", "1m"]
    with subprocess.Popen(
        [*command, "--port", "0", "--speed", "600"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as replay:
        try:
            assert replay.stdout is not None
            served, _, printed = (replay.stdout.readline() for _ in range(3))
            assert "at 600 times real speed" in served
            words = shlex.split(printed.removeprefix("kronos"))
            more = ["--backfill", "20m", "--duration", "3s"]
            shown = CliRunner().invoke(cli, ["--home", str(tmp_path), *words, *more])
        finally:
            replay.terminate()
    assert "Stopped at the end of its time" in shown.output, shown.output
    parts = Ledger(tmp_path / "lake").parts(UM)
    streamed = [part for part in parts if part.source.kind == "stream"]
    assert sum((part.last_ms - part.first_ms) // MINUTE + 1 for part in streamed) >= 5


def test_a_rehearsal_needs_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: dict[str, Any] = {"interval": "1m", "backfill": "20m", "duration": "1s", "speed": 600.0}
    config = watch_config([UM.name], settings={"replay": "synthetic"}, **chosen)
    state = watch(Home.at(tmp_path), config)
    assert state.series[0].added >= 20
    assert {part.source.kind for part in Ledger(tmp_path / "lake").parts(UM)} == {"rest", "stream"}


def test_times_are_written_with_their_unit() -> None:
    assert [seconds(text) for text in ("90s", "15m", "24h", "7d", "60", "1.5h")] == [
        90,
        900,
        86_400,
        604_800,
        60,
        5_400,
    ]
    with pytest.raises(ConfigError, match="Expected a time such as 90s, 15m, 24h or 7d, found '1 day'"):
        seconds("1 day")


def test_what_was_chosen_becomes_settings_and_a_mistake_is_named() -> None:
    config = watch_config(
        [UM.name],
        interval="5m",
        backfill="2h",
        every="10s",
        csv=Path("a.csv"),
        settings={"stream.silence_s": "9"},
    )
    assert config.keys() == [SeriesKey.parse("um:DOGEUSDT", "5m")]
    assert (config.monitor.backfill_s, config.monitor.every_s, config.stream.silence_s) == (7_200, 10, 9)
    assert (config.csv, config.json, config.duration_s) == ("a.csv", None, None)
    with pytest.raises(ConfigError, match=r"found 'stream.silence'; did you mean stream.silence_s"):
        watch_config([UM.name], settings={"stream.silence": 1})
    with pytest.raises(ConfigError, match="Expected series to watch, each once, found none"):
        watch_config([])
    with pytest.raises(ConfigError, match=r"stream\.patience: expected at least 1, found 0; raise it"):
        watch_config([UM.name], settings={"stream.patience": 0})


def state_of(connection: Any = "streaming", *, close: float = 0.25, minute: int = 5) -> MonitorState:
    opened = START + minute * MINUTE
    prices = {"open": 0.2, "high": 0.3, "low": 0.1, "close": close}
    candle = Candle(
        open_ms=opened, close_ms=opened + MINUTE - 1, **prices, volume=1e6, quote_volume=2e5, trades=7
    )
    ticker = Ticker(last=0.26, change_percent=-1.5, high=0.31, low=0.11, volume=1e9, quote_volume=123_456_789)
    one = SeriesState(
        key=UM,
        connection=connection,
        last=candle,
        forming=None,
        ticker=ticker,
        next_close_ms=opened + 2 * MINUTE - 1,
        added=1_234,
    )
    trouble = "stream of um: connection refused" if connection == "polling" else ""
    return MonitorState(series=(one,), exchange_ms=opened + MINUTE + 15_000, connects=1, last_error=trouble)


def shown(state: MonitorState, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(live_table(state, wide=width > 100))
    return console.export_text()


def test_the_table_fits_a_narrow_terminal_and_says_more_in_a_wide_one() -> None:
    narrow, wide = shown(state_of(), 80), shown(state_of(), 140)
    for text in ("um:DOGEUSDT:1m", "00:06", "0.25", "0.26", "-1.50", "0:45", "streaming"):
        assert text in narrow
        assert text in wide
    assert "…" not in narrow
    for text in ("0.11 to 0.31", "123,456,789", "1,234"):
        assert text not in narrow
        assert text in wide
    assert "last trouble: stream of um: connection refused" in shown(state_of("polling"), 80)


def test_without_a_terminal_each_closed_candle_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tasks.monitor_log")
    with view(Console(file=io.StringIO())) as tell:
        assert isinstance(tell, LogLines)
        for state in (state_of("connecting"), state_of(), state_of(), state_of(minute=6)):
            tell(state)
    assert [record.message for record in caplog.records] == [
        "um:DOGEUSDT:1m: connecting",
        "um:DOGEUSDT:1m: closed 2023-11-15 00:06:00 at 0.25, volume 1,000,000.00",
        "um:DOGEUSDT:1m: streaming",
        "um:DOGEUSDT:1m: closed 2023-11-15 00:07:00 at 0.25, volume 1,000,000.00",
    ]


def test_the_first_signal_stops_and_the_second_acts_as_usual() -> None:
    stop = threading.Event()
    usual = signal.getsignal(signal.SIGINT)
    with stop_on_signals(stop) as came:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        assert came == ["SIGINT"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual
