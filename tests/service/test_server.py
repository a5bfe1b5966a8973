"""Where the service listens, who may ask it, how it starts and stops, and how it follows the exchange."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from exchange.monitor import MonitorConfig
from exchange.replay import ReplayClock, ReplayExchange
from service.errors import Refused
from service.follow import Follower
from service.server import check_exposure
from storage.lake import Lake
from tests.support.candles import HOUR_MS, ROOT, full_candles
from tests.support.serving import BTC, CANDLES, DOGE, LAST_MS, make_home, serving
from tests.support.terminal import Terminal

LONG = "0123456789abcdef-not-a-secret"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_alone_needs_no_token(host: str) -> None:
    check_exposure(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(Refused, match="KRONOS_SERVE_TOKEN"):
        check_exposure(host, None)
    check_exposure(host, LONG)


@pytest.mark.parametrize("token", ["short", "with a space in the middle", "ä" * 20, ""])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token: str) -> None:
    with pytest.raises(Refused, match="16 characters") as refusal:
        check_exposure("127.0.0.1", token)
    assert token not in str(refusal.value) or not token


@contextmanager
def command(home: Path, *options: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    argv = [sys.executable, "-m", "flows.cli", "--home", str(home), "serve", *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")}
    with subprocess.Popen(
        argv, cwd=ROOT, env={**kept, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_answers_until_sigterm_and_reads_its_token_from_the_environment(tmp_path: Path) -> None:
    make_home(tmp_path)
    with command(tmp_path, "--port", "0", KRONOS_SERVE_TOKEN=LONG) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        url = re.search(r"http://127.0.0.1:\d+", line)[0]  # type: ignore[index]
        assert requests.get(f"{url}/models", timeout=60).status_code == 401
        found = requests.get(f"{url}/models", headers={"Authorization": f"Bearer {LONG}"}, timeout=60)
        assert found.json()["models"][0]["recipe"] == "demo"
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    assert "Traceback" not in rest
    assert "GET /models 401" in rest
    assert LONG not in rest


def test_the_command_refuses_to_be_reachable_without_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KRONOS_SERVE_TOKEN", raising=False)
    outcome = Terminal(tmp_path, capsys)("serve", "--host", "0.0.0.0", "--port", "0")
    assert outcome.complaint().startswith("error: Expected a token, since 0.0.0.0 can be reached")


def test_followed_series_get_their_candles_and_the_price_now(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    market = {key: full_candles(CANDLES + 40, seed=seed) for seed, key in enumerate((BTC, DOGE))}
    clock = ReplayClock(LAST_MS + 2 * HOUR_MS - 600_000, speed=3_600.0)  # an hour a second
    with ReplayExchange(market, clock=clock) as exchange:
        config = MonitorConfig(backfill_s=7_200, every_s=0.2, grace_s=0.1)
        follower = Follower(home, [BTC, DOGE], exchange.config, exchange.stream_config, config)
        with serving(home, follower=follower) as site:
            last_ms = live = 0
            while last_ms < LAST_MS + 3 * HOUR_MS or not live:
                pulse = site.get("/pulse", symbol="BTCUSDT").json()
                last_ms, live = pulse["last_ms"], live or pulse["price"]["live"]
                assert pulse["following"] != "streaming" or pulse["behind"] <= 2
            assert site.get("/health").json()["status"] == "ok"
            assert site.forecast()["origin_ms"] >= last_ms
    held = Lake(home.lake).read(BTC)
    assert held["close"].to_list() == market[BTC]["close"][: len(held)].to_list()


def test_an_exchange_that_is_away_is_a_word_of_trouble_and_the_rest_is_served(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with ReplayExchange({BTC: full_candles(CANDLES)}, clock=ReplayClock(LAST_MS)) as exchange:
        places = replace(exchange.config, attempts=1), exchange.stream_config
    follower = Follower(home, [BTC], *places)
    with serving(home, follower=follower) as site:
        trouble = ""
        while not trouble:
            trouble = site.get("/pulse", symbol="BTCUSDT").json()["trouble"]
        assert trouble.startswith("Expected")
        assert site.forecast()["fan"]
        assert site.get("/health").json()["status"] == "ok"
