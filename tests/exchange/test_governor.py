"""One budget for several clients, threads and real processes, against the replay exchange."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from exchange.errors import Banned, GeoBlocked, RateLimited
from exchange.governor import Governor
from exchange.replay import Fault, ReplayClock, ReplayExchange, synthetic_market
from exchange.rest import RestClient
from storage.errors import StorageError
from storage.schema import Market, SeriesKey
from tests.support.shared_clock import SharedClock

HOUR = 3_600_000
START = 1_700_006_400_000  # 2023-11-15 00:00 UTC
BEGAN_S = 1_800_000_030.0  # half a minute of the exchange is over
COUNT = 15_000
NOW = START + COUNT * HOUR
KEYS = [SeriesKey.parse(name, "1h") for name in ("um:AAAUSDT", "um:BBBUSDT", "spot:AAAUSDT")]
DATA = synthetic_market(KEYS, start_ms=START, count=COUNT, seed=11)
UM, _, SPOT = KEYS
LIMIT = 80


@pytest.fixture
def clock(tmp_path: Path) -> SharedClock:
    return SharedClock(tmp_path / "clock", BEGAN_S)


@pytest.fixture
def exchange(clock: SharedClock) -> Iterator[ReplayExchange]:
    limits: dict[Market, int] = {"spot": LIMIT, "um": LIMIT}
    with ReplayExchange(DATA, clock=ReplayClock(NOW, wall=clock), weight_limits=limits) as served:
        yield served


class Home:
    """Clients of one home, each with a governor of its own, as if each were a process."""

    def __init__(self, folder: Path, exchange: ReplayExchange, clock: SharedClock) -> None:
        self.folder, self.exchange, self.clock = folder, exchange, clock

    def governor(self, market: Market = "um") -> Governor:
        return Governor(self.folder, market, self.exchange.url, clock=self.clock, sleep=self.clock.sleep)

    def client(self, market: Market = "um", governor: Governor | None = None) -> RestClient:
        budget = governor or self.governor(market)
        return RestClient(market, self.exchange.config, budget=budget, sleep=self.clock.sleep)

    def state(self) -> dict[str, object]:
        hosts = json.loads((self.folder / "um.json").read_text())
        return hosts[self.exchange.url.removeprefix("http://")]

    def statuses(self) -> list[int]:
        return [request.status for request in self.exchange.requests]


@pytest.fixture
def home(tmp_path: Path, exchange: ReplayExchange, clock: SharedClock) -> Home:
    return Home(tmp_path / "budget", exchange, clock)


CHILD = """
import sys
from pathlib import Path
from exchange.errors import ExchangeError
from exchange.governor import Governor
from exchange.rest import ExchangeConfig, RestClient
from storage.schema import SeriesKey
from tests.support.shared_clock import SharedClock

folder, url, clock_path, symbol, start = sys.argv[1:]
clock = SharedClock(Path(clock_path), budgets=Path(folder))
governor = Governor(Path(folder), "um", url, clock=clock, sleep=clock.sleep)
config = ExchangeConfig(um_url=url, workers=4)
key = SeriesKey.parse(symbol, "1h")
try:
    with RestClient("um", config, budget=governor, sleep=clock.sleep) as client:
        print(sum(len(page) for page in client.pages(key, int(start))))
except ExchangeError as error:
    sys.exit(str(error))
"""


def process(home: Home, tmp_path: Path, symbol: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            CHILD,
            str(home.folder),
            home.exchange.url,
            str(tmp_path / "clock"),
            symbol,
            str(START),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )


def test_two_processes_use_nine_tenths_of_one_limit_together_and_are_never_refused(
    home: Home, clock: SharedClock, tmp_path: Path
) -> None:
    children = [process(home, tmp_path, symbol) for symbol in ("um:AAAUSDT", "um:BBBUSDT")]
    told = [child.communicate(timeout=60) for child in children]
    assert [(out.strip(), err) for out, err in told] == [(str(COUNT), "")] * 2
    assert set(home.statuses()) == {200}
    minutes = (clock() - BEGAN_S) / 60
    assert minutes > 1
    assert sum(request.weight for request in home.exchange.requests) >= 0.9 * LIMIT * minutes
    asked = [request.path for request in home.exchange.requests]
    assert 1 <= asked.count("/fapi/v1/exchangeInfo") <= 2  # not once per client, and not per request
    assert home.state()["limit"] == LIMIT


def test_a_limit_is_believed_for_a_day_by_all_and_then_asked_for_again(
    home: Home, clock: SharedClock
) -> None:
    def infos() -> int:
        return sum(request.path.endswith("/exchangeInfo") for request in home.exchange.requests)

    for _ in range(3):
        home.client().first_open_ms(UM)
    assert infos() == 1
    clock()
    clock.sleep(86_401)
    home.client().first_open_ms(UM)
    assert infos() == 2


def test_a_limit_that_is_not_told_leaves_the_known_one(home: Home) -> None:
    home.exchange.faults = [Fault("500", "*/exchangeInfo")]
    client = home.client()
    assert client.first_open_ms(UM) == START
    assert client.budget.limit_per_minute == 2400


def test_a_ban_outlives_its_process_and_later_ones_refuse_at_once_until_it_is_over(
    home: Home, clock: SharedClock, tmp_path: Path
) -> None:
    home.exchange.faults = [Fault("418", retry_after_s=600)]
    child = process(home, tmp_path, "um:AAAUSDT")
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "banned until" in said
    home.exchange.faults = []
    asked = len(home.exchange.requests)
    later = process(home, tmp_path, "um:BBBUSDT")
    assert later.communicate(timeout=60)[1] == said
    with pytest.raises(Banned) as caught:
        home.client().server_time_ms()
    assert str(caught.value) == said.strip()
    assert 590 < caught.value.seconds <= 600
    assert len(home.exchange.requests) == asked
    clock.sleep(601)
    assert home.client().server_time_ms() == NOW


def test_a_429_holds_every_thread_of_every_client_for_as_long_as_it_says(
    home: Home, clock: SharedClock
) -> None:
    asked_before_waiting: list[int] = []

    def sleep(seconds: float) -> None:
        if seconds > 30:
            asked_before_waiting.append(len(home.exchange.requests))
        clock.sleep(seconds)

    def governor() -> Governor:
        return Governor(home.folder, "um", home.exchange.url, clock=clock, sleep=sleep)

    home.exchange.faults = [Fault("429", "*/klines", on=(5,), retry_after_s=33)]
    clients = [home.client(governor=governor()) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(lambda client: list(client.pages(UM, START, START + 6_000 * HOUR)), clients))
    for each in pages:
        assert_frame_equal(pl.concat(each), DATA[UM][:6_000], check_exact=True)
    assert home.statuses().count(429) == 1
    assert clock() >= BEGAN_S + 33
    assert asked_before_waiting
    refused = home.statuses().index(429)
    workers = home.exchange.config.workers
    assert min(asked_before_waiting) <= refused + 2 * workers  # what was under way already


def test_a_long_pause_is_an_error_in_later_processes_too(home: Home) -> None:
    home.exchange.faults = [Fault("429", on=(1,), retry_after_s=4_000)]
    with pytest.raises(RateLimited, match="wait 4000 s"):
        home.client().server_time_ms()
    with pytest.raises(RateLimited, match=r"pause; wait (4000|3999) s and run again") as caught:
        home.client().server_time_ms()
    assert caught.value.retry_after_s > 3_900
    assert len(home.exchange.requests) == 1


def test_a_clock_that_was_set_back_neither_shortens_nor_lengthens_a_pause(tmp_path: Path) -> None:
    now, slept = 1_800_000_000.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    def governor() -> Governor:
        return Governor(tmp_path, "um", "http://127.0.0.1:1", clock=lambda: now, sleep=sleep)

    governor().pause(30)
    now -= 7_200
    governor().before(1)
    assert sum(slept) == pytest.approx(30)
    governor().before(1)
    assert sum(slept) == pytest.approx(30)


HOLD = """
import sys
from pathlib import Path
from exchange.governor import Governor
from tests.support.shared_clock import SharedClock

clock = SharedClock(Path(sys.argv[3]))
governor = Governor(Path(sys.argv[1]), "um", sys.argv[2], clock=clock, sleep=clock.sleep)
governor.learn_limit(100)
governor.before(40)
with governor._shared():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_neither_the_lock_nor_its_weight_behind(
    home: Home, clock: SharedClock, tmp_path: Path
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.folder), home.exchange.url, str(tmp_path / "clock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    governor = home.governor()
    assert governor.used == 40  # it may have asked before it died
    governor.before(40)
    assert clock() <= BEGAN_S + 60.1


@pytest.mark.parametrize("wreck", [b"", b"{", b"[]", b'{"HOST": {"limit": 3}}', b'{"HOST": 7}'])
def test_a_damaged_state_is_begun_anew(home: Home, wreck: bytes) -> None:
    home.folder.mkdir()
    host = home.exchange.url.removeprefix("http://").encode()
    (home.folder / "um.json").write_bytes(wreck.replace(b"HOST", host))
    assert home.client().server_time_ms() == NOW
    assert home.state()["seen"] == 1


def test_hosts_and_markets_do_not_share_a_count_nor_a_ban(home: Home, clock: SharedClock) -> None:
    governor = home.governor()
    governor.before(7)
    governor.forbid(Banned("banned", until_ms=0, seconds=600))
    other = Governor(home.folder, "um", "https://fapi.binance.com", clock=clock, sleep=clock.sleep)
    other.before(3)
    assert (governor.used, other.used, home.governor("spot").used) == (7, 3, 0)
    with pytest.raises(Banned):
        home.governor().before(1)
    clock()
    clock.sleep(100_000)
    other.before(1)
    assert set(json.loads((home.folder / "um.json").read_text())) == {"fapi.binance.com"}  # the rest is over


def test_a_home_that_cannot_be_written_is_named(home: Home) -> None:
    home.folder.write_text("a file")
    home.folder /= "below"
    with pytest.raises(StorageError, match=r"expected to write .*um\.json"):
        home.governor().before(1)


def test_spot_candles_of_a_refused_location_come_from_the_mirror_which_is_said_once(
    home: Home, clock: SharedClock, caplog: pytest.LogCaptureFixture
) -> None:
    home.exchange.faults = [Fault("451")]
    governor = home.governor("spot")
    with ReplayExchange(DATA, clock=ReplayClock(NOW, wall=clock)) as mirror, caplog.at_level(logging.WARNING):
        config = replace(home.exchange.config, spot_fallback_url=mirror.url)
        for _ in range(2):
            client = RestClient("spot", config, budget=governor, sleep=clock.sleep)
            found = pl.concat(client.pages(SPOT, START, START + 3_500 * HOUR))
            assert_frame_equal(found, DATA[SPOT][:3_500], check_exact=True)
            assert client.url == mirror.url
    assert len(home.exchange.requests) == 1
    assert caplog.text.count("does not serve this location (HTTP 451)") == 1
    assert f"spot candles come from {mirror.url}" in caplog.text


def test_a_mirror_that_refuses_the_location_too_is_the_end(home: Home, clock: SharedClock) -> None:
    home.exchange.faults = [Fault("451")]
    with ReplayExchange(DATA, clock=ReplayClock(NOW), faults=[Fault("451")]) as mirror:
        config = replace(home.exchange.config, spot_fallback_url=mirror.url)
        with pytest.raises(GeoBlocked, match=mirror.url):
            RestClient("spot", config, budget=home.governor("spot")).server_time_ms()
        assert (len(home.exchange.requests), len(mirror.requests)) == (1, 1)


def test_futures_have_no_mirror(home: Home) -> None:
    home.exchange.faults = [Fault("451")]
    with pytest.raises(GeoBlocked):
        home.client("um").server_time_ms()
    assert len(home.exchange.requests) == 1
