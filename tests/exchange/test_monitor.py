"""A monitor's lake equals the exchange's candles whatever the streams do, and so do its files."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from exchange.errors import BadSymbol, Unreachable
from exchange.monitor import Monitor, MonitorConfig, interruptible
from exchange.monitor_state import MonitorState
from exchange.replay import Fault, ReplayClock, ReplayExchange, synthetic_market
from exchange.rest import RestClient
from exchange.stream import StreamConfig
from storage.candle_files import read_candles
from storage.errors import StorageError
from storage.lake import Lake
from storage.ledger import Ledger
from storage.schema import SeriesKey

MINUTE = 60_000
START = 1_700_006_400_000
SPOT, UM = SeriesKey.parse("spot:BTCUSDT", "1m"), SeriesKey.parse("um:DOGEUSDT", "1m")
MARKET = synthetic_market([SPOT, UM], start_ms=START, count=1_000, seed=3)
ROW = 200  # the candle that is forming when a monitor starts
NOW = START + ROW * MINUTE + 10_000
BACKFILL = 60  # candles
FIRST = ROW - BACKFILL  # its first row
SPEED = 900.0  # a candle takes 67 ms


class Watch:
    """A monitor in this thread, which stops once something is true of its state."""

    def __init__(self, exchange: ReplayExchange, root: Path) -> None:
        self.exchange = exchange
        self.lake, self.ledger = Lake(root / "lake"), Ledger(root / "lake")
        self.root = root
        self.states: list[MonitorState] = []

    def run(
        self,
        *keys: SeriesKey,
        until: Callable[[MonitorState], bool],
        every_s: float = 0.2,
        stream: StreamConfig | None = None,
        seconds: float = 60.0,
        **options: Any,
    ) -> MonitorState:
        stop = threading.Event()
        happened: list[MonitorState] = []

        def on_update(state: MonitorState) -> None:
            self.states.append(state)
            if until(state):
                happened.append(state)
                stop.set()

        config = MonitorConfig(backfill_s=BACKFILL * 60, every_s=every_s, grace_s=0.1)
        stream = quick(stream or self.exchange.stream_config)
        clients = {
            market: RestClient(market, replace(self.exchange.config, attempts=1), sleep=interruptible(stop))
            for market in {key.market for key in keys or (UM,)}
        }
        state = Monitor(
            keys or (UM,),
            lake=self.lake,
            ledger=self.ledger,
            clients=clients,
            stop=stop,
            config=config,
            stream=stream,
            on_update=on_update,
            **options,
        ).run(duration_s=seconds)
        assert happened, f"not within {seconds} s, but {state}"
        return state

    def kinds(self, key: SeriesKey = UM) -> set[str]:
        return {part.source.kind for part in self.ledger.parts(key)}

    def handshakes(self) -> int:
        return sum(request.status == 101 for request in self.exchange.requests)


def quick(config: StreamConfig) -> StreamConfig:
    return replace(config, backoff_s=0.02, longest_backoff_s=0.1)


def row_of(open_ms: int) -> int:
    return (open_ms - START) // MINUTE


def candles_until(row: int, *keys: SeriesKey) -> Callable[[MonitorState], bool]:
    """Whether every series has the candle of that row."""

    def reached(state: MonitorState) -> bool:
        return all(one.last is not None and row_of(one.last.open_ms) >= row for one in state.series)

    return reached


def assert_exact(watch: Watch, key: SeriesKey = UM, *, first: int | None = None) -> None:
    """The lake has every candle from the back-fill's first to its own last, and no other."""
    lake = watch.lake.read(key)
    times = lake["open_time"].dt.epoch("ms")
    if first is None:
        first = row_of(int(times[0]))
        assert FIRST <= first < ROW - BACKFILL // 2  # the clock runs on until it is asked
    assert_frame_equal(lake, MARKET[key][first : row_of(int(times[-1])) + 1], check_exact=True)


@pytest.fixture
def exchange() -> Iterator[ReplayExchange]:
    with ReplayExchange(MARKET, clock=ReplayClock(NOW, speed=SPEED)) as running:
        yield running


@pytest.fixture
def watch(exchange: ReplayExchange, tmp_path: Path) -> Watch:
    return Watch(exchange, tmp_path)


def test_candles_are_filled_at_the_start_and_stored_as_they_close(watch: Watch) -> None:
    state = watch.run(SPOT, UM, until=candles_until(ROW + 8))
    for key in (SPOT, UM):
        assert_exact(watch, key)
        assert watch.kinds(key) == {"rest", "stream"}
    assert [one.connection for one in state.series] == ["stopped", "stopped"]
    assert [one.added for one in state.series] == [watch.lake.read(key).height for key in (SPOT, UM)]
    assert state.last_error == ""


def test_the_state_tells_the_last_and_the_forming_candle_the_ticker_and_the_next_close(watch: Watch) -> None:
    watch.run(until=lambda state: state.series[0].forming is not None and len(watch.states) > 5)
    one = watch.states[-2].series[0]
    assert one.connection == "streaming"
    assert one.last is not None
    assert one.forming is not None
    assert one.ticker is not None
    assert one.forming.open_ms == one.last.close_ms + 1
    assert one.next_close_ms == one.forming.close_ms
    row = MARKET[UM].row(row_of(one.last.open_ms), named=True)
    assert (one.last.close, one.last.quote_volume, one.last.trades) == tuple(
        row[name] for name in ("close", "quote_volume", "trades")
    )
    day = MARKET[UM][: row_of(one.last.open_ms) + 2]  # all there is, less than 24 h
    assert day["low"].min() <= one.ticker.low <= one.ticker.last <= one.ticker.high <= day["high"].max()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("ws-unclosed", every=3),
        Fault("ws-unclosed"),
        Fault("ws-disconnect", every=9),
        Fault("ws-duplicate"),
        Fault("ws-shutdown", every=11),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.every}",
)
def test_no_candle_is_lost_or_doubled_when_a_stream_is_at_fault(watch: Watch, fault: Fault) -> None:
    watch.exchange.faults = [fault]
    watch.run(SPOT, UM, until=candles_until(ROW + 9))
    assert_exact(watch, SPOT)
    assert_exact(watch, UM)


def test_all_faults_together_lose_nothing(watch: Watch) -> None:
    faults = [
        Fault("ws-refuse", probability=0.2, seed=1),
        Fault("ws-silent", probability=0.2, seed=2),
        Fault("ws-disconnect", probability=0.1, seed=3),
        Fault("ws-duplicate", probability=0.2, seed=4),
        Fault("ws-unclosed", probability=0.4, seed=5),
        Fault("503", probability=0.1, seed=6, path="*/klines"),
        Fault("reset", probability=0.1, seed=7, path="*/klines"),
    ]
    stream = replace(watch.exchange.stream_config, silence_s=0.3)
    csv = watch.root / "candles.csv"

    def until(state: MonitorState) -> bool:
        if len(watch.states) == 1:  # the start is undisturbed: its errors would be told
            watch.exchange.faults = faults
        return candles_until(ROW + 15)(state)

    watch.run(SPOT, UM, until=until, stream=stream, csv=csv)
    watch.exchange.faults = []
    # Whatever stood open when it stopped is fetched at the next start.
    watch.run(SPOT, UM, until=candles_until(ROW + 17), csv=csv)
    for key in (SPOT, UM):
        assert_exact(watch, key)
        rows = pl.read_csv(csv).filter(series=key.name)
        assert rows["close"].to_list() == watch.lake.read(key)["close"].to_list()


def test_a_silent_stream_is_replaced_and_its_candles_are_fetched(watch: Watch) -> None:
    watch.exchange.faults = [Fault("ws-silent", times=1)]
    stream = replace(watch.exchange.stream_config, silence_s=0.4)
    state = watch.run(
        until=lambda state: state.series[0].connection == "streaming", stream=stream, every_s=30
    )
    assert state.last_error == "stream of um: connected, but silent for 0.4 s"
    assert state.connects == 2
    assert_exact(watch)


def test_an_overdue_candle_is_fetched_before_the_silence_is_noticed(watch: Watch) -> None:
    """The closing message is lost and no later one comes: the clock alone tells."""
    frozen = ReplayClock(START + (ROW + 1) * MINUTE - 300)
    with ReplayExchange(MARKET, clock=frozen) as exchange:
        watch = Watch(exchange, watch.root)
        threading.Timer(0.3, frozen.advance, [1_000]).start()
        exchange.faults = [Fault("ws-silent")]
        watch.run(until=candles_until(ROW))
        assert_exact(watch)
    assert watch.kinds() == {"rest"}


def test_connections_are_replaced_in_time_without_a_loss(watch: Watch) -> None:
    stream = replace(watch.exchange.stream_config, lifetime_s=0.3)
    state = watch.run(until=lambda state: state.connects >= 5, stream=stream)
    assert_exact(watch)
    assert watch.handshakes() - state.connects in (0, 1)  # one may stand that was not told yet


@pytest.mark.parametrize("fault", ["ws-refuse", "ws-silent"])
def test_candles_are_polled_where_no_stream_is_to_be_had(watch: Watch, fault: Any) -> None:
    watch.exchange.faults = [Fault(fault)]
    stream = replace(watch.exchange.stream_config, silence_s=0.1)

    def enough(state: MonitorState) -> bool:
        return state.series[0].connection == "polling" and candles_until(ROW + 8)(state)

    state = watch.run(until=enough, stream=stream)
    assert_exact(watch)
    assert watch.kinds() == {"rest"}
    assert state.series[0].forming is None


def test_polling_ends_when_the_stream_is_back(watch: Watch) -> None:
    watch.exchange.faults = [Fault("ws-refuse", times=14)]
    watch.run(until=lambda state: state.series[0].connection == "streaming")
    seen = list(dict.fromkeys(state.series[0].connection for state in watch.states))
    assert seen == ["connecting", "polling", "streaming", "stopped"]
    assert_exact(watch)


def test_a_dead_rest_server_does_not_end_it(watch: Watch) -> None:
    """What the stream brings is stored, what is missing waits until REST is back."""
    watch.exchange.faults = [Fault("ws-unclosed", on=(3,))]

    def until(state: MonitorState) -> bool:
        rest = Fault("503", path="/fapi/*")
        faults = watch.exchange.faults
        if len(watch.states) == 2:
            watch.exchange.faults = [*faults, rest]
        if candles_until(ROW + 10)(state) and rest in faults:
            watch.exchange.faults = []
        return candles_until(ROW + 20)(state) and state.series[0].connection == "streaming"

    state = watch.run(until=until)
    assert_exact(watch)
    assert "503" in state.last_error


def test_a_sleep_longer_than_the_back_fill_leaves_no_hole(watch: Watch) -> None:
    """A laptop wakes: the connection is dead, much has closed meanwhile, and REST is not ready at once."""

    def until(state: MonitorState) -> bool:
        if len(watch.states) == 3:
            watch.exchange.faults = [Fault("ws-disconnect", times=1), Fault("503", path="*/klines", times=2)]
            watch.exchange.clock.advance(3 * BACKFILL * MINUTE)
        return state.series[0].added > 4 * BACKFILL

    watch.run(until=until)
    assert_exact(watch)


def test_a_hole_of_the_exchange_stays_a_hole_and_is_asked_for_once(tmp_path: Path) -> None:
    """Nothing was traded for ten candles in the midst: nobody knows more by asking at every message."""
    halted = pl.concat([MARKET[UM][: ROW + 3], MARKET[UM][ROW + 13 :]])
    with ReplayExchange({UM: halted}, clock=ReplayClock(NOW, speed=SPEED)) as exchange:
        watch = Watch(exchange, tmp_path)
        watch.run(until=candles_until(ROW + 18), every_s=10)
        asked = sum(request.path.endswith("/time") for request in exchange.requests)
    lake = watch.lake.read(UM)
    assert_frame_equal(lake, halted.join(lake, on="open_time", how="semi"), check_exact=True)
    (hole,) = watch.ledger.holes(UM, lake)
    assert (row_of(hole.start_ms), hole.candles) == (ROW + 3, 10)
    assert asked < 15


def test_a_series_that_another_process_writes_is_caught_up_later(watch: Watch) -> None:
    other = Lake(watch.root / "lake")
    held = other.writing(UM)
    released: list[int] = []  # rows that the lake had then

    def until(state: MonitorState) -> bool:
        if len(watch.states) == 2:
            held.__enter__()
        elif not released and "expected the series um:DOGEUSDT:1m to be free" in state.last_error:
            held.__exit__(None, None, None)
            released.append(len(watch.lake.read(UM)))
        caught_up = bool(released) and len(watch.lake.read(UM)) > released[0]
        return caught_up and candles_until(ROW + 16)(state)

    watch.run(until=until)
    assert_exact(watch)


def test_a_series_without_a_closed_candle_yet_is_waited_for(tmp_path: Path) -> None:
    listed = {UM: MARKET[UM][ROW:], SPOT: MARKET[SPOT]}
    with ReplayExchange(listed, clock=ReplayClock(NOW, speed=SPEED)) as exchange:
        watch = Watch(exchange, tmp_path)
        watch.run(until=candles_until(ROW + 4))
        assert_exact(watch, first=ROW)


def test_a_mistake_is_told_at_the_start(watch: Watch) -> None:
    with pytest.raises(BadSymbol, match="DOGEUSTD"):
        watch.run(SeriesKey.parse("um:DOGEUSTD", "1m"), until=lambda state: False)
    watch.exchange.close()
    with pytest.raises(Unreachable):
        watch.run(until=lambda state: False)


def test_a_later_run_continues_where_the_earlier_stopped(watch: Watch) -> None:
    watch.run(until=candles_until(ROW + 3))
    watch.exchange.clock.advance(90 * MINUTE)  # more than the back-fill
    watch.run(until=candles_until(ROW + 100))
    rows = watch.lake.read(UM)["open_time"].dt.epoch("ms").to_list()
    assert rows == sorted(set(rows))
    (hole,) = watch.ledger.holes(UM, watch.lake.read(UM))
    assert hole.status == "open"  # an ingest fills it; --backfill says how far a monitor looks


def test_a_stop_interrupts_a_wait(watch: Watch) -> None:
    watch.exchange.faults = [Fault("429", path="*/klines", retry_after_s=300)]
    stop, asked = threading.Event(), []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        if seconds > 60:  # the pause that the exchange asks for, and no retry before it
            threading.Timer(0.05, stop.set).start()
            interruptible(stop)(seconds)  # longer than this test may take

    client = RestClient("um", watch.exchange.config, sleep=sleep)
    monitor = Monitor([UM], lake=watch.lake, ledger=watch.ledger, clients={"um": client}, stop=stop)
    assert monitor.run().series[0].last is None
    assert asked[-1] > 60


class TestFiles:
    """CSV and JSON beside the lake."""

    def test_the_csv_has_every_candle_of_the_lake_once_and_in_order(self, watch: Watch) -> None:
        watch.exchange.faults = [Fault("ws-unclosed", every=3), Fault("ws-disconnect", every=20)]
        csv = watch.root / "out" / "candles.csv"
        watch.run(until=candles_until(ROW + 6), csv=csv)
        watch.run(until=candles_until(ROW + 12), csv=csv)
        assert_frame_equal(read_candles(csv, UM.interval), watch.lake.read(UM), check_exact=True)

    def test_a_torn_last_line_is_written_again(self, watch: Watch) -> None:
        csv = watch.root / "candles.csv"
        watch.run(until=candles_until(ROW + 3), csv=csv)
        csv.write_bytes(csv.read_bytes()[:-40])
        watch.run(until=candles_until(ROW + 6), csv=csv)
        assert_frame_equal(read_candles(csv, UM.interval), watch.lake.read(UM), check_exact=True)

    def test_another_file_is_left_alone(self, watch: Watch) -> None:
        csv = watch.root / "mine.csv"
        csv.write_text("name,value\na,1\nunfinished")
        with pytest.raises(
            StorageError, match=r"expected .*mine\.csv to begin with the columns series, inter"
        ):
            watch.run(until=lambda state: False, csv=csv)
        assert csv.read_text() == "name,value\na,1\nunfinished"

    def test_the_json_is_whole_at_any_moment_and_final_in_the_end(self, watch: Watch) -> None:
        path = watch.root / "latest.json"
        read: list[dict[str, Any]] = []

        def until(state: MonitorState) -> bool:
            if path.exists():
                read.append(json.loads(path.read_text()))
            return candles_until(ROW + 15)(state)

        state = watch.run(SPOT, UM, until=until, json=path)
        assert read
        final = json.loads(path.read_text())
        assert final == json.loads(json.dumps(state.as_json()))
        assert [one["series"] for one in final["series"]] == ["spot:BTCUSDT", "um:DOGEUSDT"]
        last = final["series"][1]["last"]
        row = watch.lake.read(UM).row(-1, named=True)
        assert (last["close"], last["volume"], last["trades"]) == (row["close"], row["volume"], row["trades"])
        assert last["open_time"] == row["open_time"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert {one["connection"] for one in final["series"]} == {"stopped"}
        assert not list(watch.root.glob(".latest*"))


@pytest.mark.parametrize("setting", ["backfill_s", "every_s", "grace_s"])
def test_a_time_that_cannot_be_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting}: expected above 0 seconds, found 0; raise it"):
        MonitorConfig(**{setting: 0})
