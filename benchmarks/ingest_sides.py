"""The measured sides of benchmarks/ingest.py: ours, and two public clients of Binance that page over REST."""

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import peak_mb

__all__ = ["MAJORS", "SIDES", "fast_clock"]

MAJORS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
THREADS = 4  # series at once, as `kronos ingest` does


def fast_clock(epoch: float, speed: float) -> Callable[[], float]:
    """Real time, sped up since an epoch: the same for every process that is told it."""
    return lambda: epoch + (time.time() - epoch) * speed if epoch else time.time()


def run_ours(
    *,
    url: str,
    root: str,
    symbols: list[str],
    interval: str,
    start_ms: int,
    end_ms: int,
    archive: bool,
    epoch: float = 0.0,
    speed: float = 1.0,
) -> dict:
    from concurrent.futures import ThreadPoolExecutor

    from exchange.archive import ArchiveClient, ArchiveConfig
    from exchange.config import ExchangeConfig
    from exchange.governor import Governor
    from exchange.rest import RestClient
    from exchange.sync import SyncReport, sync_series
    from storage.lake import Lake
    from storage.ledger import Ledger
    from storage.schema import SeriesKey

    lake = Path(root)
    governor = Governor(
        lake / ".budget",
        "spot",
        url,
        clock=fast_clock(epoch, speed),
        sleep=lambda seconds: time.sleep(seconds / speed),
    )
    config = ExchangeConfig(spot_url=url)
    zips = ArchiveClient("spot", ArchiveConfig(archive_url=url, listing_url=url)) if archive else None

    def one(symbol: str) -> SyncReport:
        with RestClient("spot", config, budget=governor) as client:
            key = SeriesKey.parse(f"spot:{symbol}", interval)
            span = {"start_ms": start_ms, "end_ms": end_ms}
            return sync_series(client, Lake(lake), Ledger(lake), key, archive=zips, **span)

    began, used_s = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(THREADS) as pool:
        reports = list(pool.map(one, symbols))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - used_s
    rows = sum(report.rows for report in reports)
    used = {"zips": sum(report.zips for report in reports), "requests": sum(one.requests for one in reports)}
    measured = {"seconds": seconds, "cpu_s": cpu_s, "rows": rows, "rows_per_s": rows / seconds}
    return measured | {"peak_mb": peak_mb(), **used}


def run_python_binance(*, url: str, start_ms: int, end_ms: int) -> dict:
    from binance.client import Client

    Client.API_URL = url + "/api"
    client = Client()
    began = time.perf_counter()
    rows = len(client.get_historical_klines(MAJORS[0], "1m", start_ms, end_ms - 1))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": rows, "rows_per_s": rows / seconds, "peak_mb": peak_mb()}


def run_ccxt(*, url: str, start_ms: int, end_ms: int) -> dict:
    import ccxt

    client = ccxt.binance({"options": {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}}})
    client.urls["api"]["public"] = url + "/api/v3"
    client.load_markets()
    rows: list[list[float]] = []
    began = time.perf_counter()
    since = start_ms
    while since < end_ms:  # the paging loop of ccxt's manual; its rate limiter is on, as it is by default
        page = client.fetch_ohlcv("BTC/USDT", "1m", since=since, limit=1000)
        if not page:
            break
        rows += page
        since = page[-1][0] + 60_000
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": len(rows), "rows_per_s": len(rows) / seconds, "peak_mb": peak_mb()}


SIDES = {"ours": run_ours, "python_binance": run_python_binance, "ccxt": run_ccxt}
