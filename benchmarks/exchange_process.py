"""The replay exchange in a process of its own, with an archive on disk; asked for its counts over stdin.

Prints its URL as JSON; then each line "counts" is answered by what was asked of it since the last "forget".
"""

import argparse
import json
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

from benchmarks.ingest import END_MS, many, month_ms
from benchmarks.ingest_sides import MAJORS, fast_clock
from exchange.replay import ArchiveStyle, ReplayClock, ReplayExchange, synthetic_market
from storage.schema import SeriesKey

DAY_MS = 86_400_000
NOW_MS = END_MS + 10 * DAY_MS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--build", type=json.loads, help="series, interval and months of the archive to write"
    )
    parser.add_argument("--rest-months", type=int, default=1)
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--epoch", type=float, default=0.0)
    arguments = parser.parse_args()
    if arguments.build is not None:
        for symbol, interval, months in arguments.build:
            build(arguments.folder, SeriesKey.parse(f"spot:{symbol}", interval), months)
        return
    serve(arguments)


def build(folder: Path, key: SeriesKey, months: int) -> None:
    """The monthly zips of one series, unless the folder has them."""
    prefix = f"data/spot/monthly/klines/{key.symbol}/{key.interval}/"
    if len(list((folder / prefix).glob("*.zip"))) >= months:
        return
    start_ms = month_ms(-months)
    candles = synthetic_market(
        [key], start_ms=start_ms, count=key.interval.count(start_ms, END_MS - 1), seed=5
    )
    ReplayExchange(candles, clock=ReplayClock(NOW_MS)).archive.write(folder, prefix)


def serve(arguments: argparse.Namespace) -> None:
    """Answer until stdin ends."""
    start_ms = month_ms(-arguments.rest_months)
    paged = SeriesKey.parse(f"spot:{MAJORS[0]}", "1m")
    candles = synthetic_market(
        [paged], start_ms=start_ms, count=paged.interval.count(start_ms, END_MS - 1), seed=5
    )
    others = [SeriesKey.parse(f"spot:{symbol}", "5m") for symbol in (*MAJORS[1:], *many(50))]
    candles |= synthetic_market(others, start_ms=END_MS - DAY_MS, count=288, seed=5)
    clock = ReplayClock(NOW_MS, wall=fast_clock(arguments.epoch, arguments.speed))
    style = ArchiveStyle(folder=arguments.folder)
    limits = {"spot": arguments.limit}
    with ReplayExchange(candles, clock=clock, archive=style, weight_limits=limits) as exchange:  # type: ignore[arg-type]
        totals: list[tuple[int, int]] = []
        threading.Thread(target=sample, args=(exchange, totals), daemon=True).start()
        print(json.dumps({"url": exchange.url}), flush=True)
        for line in sys.stdin:
            if line.strip() == "forget":
                exchange.forget_requests()
                totals.clear()
            print(json.dumps(counts(exchange, totals)), flush=True)


def sample(exchange: ReplayExchange, totals: list[tuple[int, int]]) -> None:
    """The weight spent when each minute of the limits began."""
    before = 0
    while True:
        if (minute := exchange.clock.limits_ms // 60_000) != before:
            before = minute
            totals.append((minute, sum(request.weight for request in exchange.requests)))
        time.sleep(0.002)


def counts(exchange: ReplayExchange, totals: list[tuple[int, int]]) -> dict:
    requests = exchange.requests
    return {
        "requests": sum(not one.path.startswith("/data/") and one.path != "/" for one in requests),
        "zips": sum(one.path.endswith(".zip") for one in requests),
        "weight": sum(one.weight for one in requests),
        "klines_weight": sum(one.weight for one in requests if one.path.endswith("/klines")),
        "rows": sum(one.rows for one in requests),
        "statuses": dict(Counter(str(one.status) for one in requests)),
        "per_minute": [after[1] - now[1] for now, after in pairwise(totals)],
    }


if __name__ == "__main__":
    main()
