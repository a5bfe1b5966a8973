"""Downloading candles: the archive and the REST API into the lake, against public clients of Binance.

    python benchmarks/ingest.py [--cases archive_rows_per_s,noop_rerun] [--quick] [--save]

The exchange is the replay exchange on loopback, in a process of its own, with an archive on disk that is
written before (a minute). Each run is a process of its own into an empty lake. ccxt is found on PYTHONPATH.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import ROOT, machine, peak_mb, run_json, write_results

CASES = (
    "archive_rows_per_s",
    "noop_rerun",
    "rest_weight_efficiency",
    "vs_python_binance",
    "vs_ccxt",
    "growth",
)
MAJORS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
END = datetime(2025, 7, 1, tzinfo=UTC)
END_MS = int(END.timestamp() * 1000)
THREADS = 4  # series at once, as `kronos ingest` does
SPEED, LIMIT = 10.0, 300  # of the weight minute; 138 pages in 6 s leave two busy cores time to answer
RUNS = 3
GROWTH_SYMBOLS, GROWTH_MONTHS = (1, 5, 10, 25, 50), (1, 6, 12, 24, 60)


def month_ms(offset: int) -> int:
    """The start of the month so many months from END."""
    month = END.year * 12 + END.month - 1 + offset
    return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp() * 1000)


def many(count: int) -> tuple[str, ...]:
    """Symbols for growth."""
    return tuple(f"S{number:02}USDT" for number in range(count))


def fast_clock(epoch: float, speed: float) -> Callable[[], float]:
    """Real time, sped up since an epoch: the same for every process that is told it."""
    return lambda: epoch + (time.time() - epoch) * speed if epoch else time.time()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to report, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help="fewer months, days and runs; ends within a minute"
    )
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    parser.add_argument("--side", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side.pop("side")](**arguments.side)))
        return
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="ingest-") as name:
        report = Bench(Path(name), quick=arguments.quick).report(cases)
    if arguments.save:
        write_results(report, markdown(report))
    print(json.dumps(report))


class Bench:
    """All cases over one archive."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.months = 2 if quick else 24
        self.runs = 1 if quick else RUNS
        self.serial = 0
        self.load = round(os.getloadavg()[0], 1)

    def report(self, cases: list[str]) -> dict:
        build = [(symbol, "1m", self.months) for symbol in MAJORS]
        if "growth" in cases:
            build += [(symbol, "5m", 1) for symbol in many(50)] + [(MAJORS[0], "5m", max(GROWTH_MONTHS))]
        archive = ["--folder", str(self.folder / "archive"), "--build", json.dumps(build)]
        subprocess.run([sys.executable, "-m", "benchmarks.exchange_process", *archive], cwd=ROOT, check=True)
        made = [one for case in cases for one in getattr(self, case)()]
        return {
            "theme": "ingest",
            **machine(),
            "versions": versions(),
            "load": self.load,
            "runs": self.runs,
            "cases": made,
        }

    def side(self, side: str, **options: object) -> dict:
        """A measured run in a process of its own."""
        found = run_json("benchmarks.ingest", "--side", json.dumps({"side": side, **options}))
        print(side, found, file=sys.stderr)
        return found

    def home(self) -> str:
        self.serial += 1
        return str(self.folder / f"lake{self.serial}")

    def archive_run(self, url: str, symbols: tuple[str, ...], months: int, interval: str = "1m") -> dict:
        span = {"start_ms": month_ms(-months), "end_ms": END_MS}
        return self.side(
            "ours", url=url, root=self.home(), symbols=symbols, interval=interval, archive=True, **span
        )

    def archive_rows_per_s(self) -> Iterator[dict]:
        with exchange(self.folder) as (url, _):
            runs = [self.archive_run(url, MAJORS, self.months) for _ in range(self.runs)]
        best = middle(runs, "rows_per_s")
        note = f"{best['rows']:,} rows, {best['zips']} zips, {best['seconds']:.1f} s"
        yield case("archive_rows_per_s", best["rows_per_s"], "rows/s", best, note=note)

    def noop_rerun(self) -> Iterator[dict]:
        with exchange(self.folder) as (url, ask):
            span = {"start_ms": month_ms(-self.months), "end_ms": END_MS}
            again = {"url": url, "root": self.home(), "symbols": MAJORS, "interval": "1m", "archive": True}
            self.side("ours", **again, **span)
            ask("forget")
            runs = [self.side("ours", **again, **span) for _ in range(self.runs)]
            asked = ask("counts")
        best = middle(runs, "seconds")
        per_run = asked["requests"] / len(runs) / len(MAJORS)
        note = f"{per_run:.2f} requests per series, {asked['zips']} zips"
        yield case("noop_rerun", best["seconds"], "s", best, note=note)

    def rest_weight_efficiency(self) -> Iterator[dict]:
        epoch = time.time()
        months = 7 if self.quick else 12  # of 44 pages each
        options = ["--limit", str(LIMIT), "--speed", str(SPEED), "--epoch", str(epoch)]
        with exchange(self.folder, "--rest-months", str(months), *options) as (url, ask):
            ask("forget")
            span = {"start_ms": month_ms(-months), "end_ms": END_MS}
            where = {"url": url, "root": self.home(), "symbols": MAJORS[:1], "interval": "1m"}
            run = self.side("ours", **where, **span, archive=False, epoch=epoch, speed=SPEED)
            asked = ask("counts")
        minutes = [weight for weight in asked["per_minute"] if weight][1:]  # it began within the first one
        share = statistics.median(minutes) / LIMIT
        cheapest = -(-run["rows"] // 1000) * 2
        note = (
            f"of the weight allowed in each of {len(minutes)} whole minutes ({SPEED:.0f} times faster), "
            f"{asked['statuses'].get('429', 0)} x 429; weight of klines {asked['klines_weight']} "
            f"where the cheapest paging costs {cheapest}"
        )
        yield case("rest_weight_efficiency", share, "share", run, note=note)

    def vs_python_binance(self) -> Iterator[dict]:
        yield self._versus("vs_python_binance", "python_binance", "python-binance get_historical_klines")

    def vs_ccxt(self) -> Iterator[dict]:
        if importlib.util.find_spec("ccxt") is None:
            print("vs_ccxt is left out: ccxt is not installed", file=sys.stderr)
            return
        yield self._versus("vs_ccxt", "ccxt", "ccxt fetch_ohlcv")

    def _versus(self, name: str, peer: str, label: str) -> dict:
        """A year by the archive against the days that the peer pages in bounded time."""
        days, months = (3, 2) if self.quick else (21, 12)
        ours, theirs = [], []
        with exchange(self.folder) as (url, ask):
            for _ in range(self.runs):
                ask("forget")
                ours.append(self.archive_run(url, MAJORS[:1], months) | {"asked": ask("counts")})
                ask("forget")
                span = {"start_ms": END_MS - days * 86_400_000, "end_ms": END_MS}
                theirs.append(self.side(peer, url=url, **span) | {"asked": ask("counts")})
        us, them = middle(ours, "rows_per_s"), middle(theirs, "rows_per_s")
        note = (
            f"ours {us['rows']:,} rows: {us['asked']['requests']} requests, weight {us['asked']['weight']}, "
            f"{us['asked']['zips']} zips; peer {them['rows']:,} rows: {them['asked']['requests']} requests, "
            f"weight {them['asked']['weight']}"
        )
        return case(name, us["rows_per_s"], "rows/s", us, note=note, peer=them, peer_name=label)

    def growth(self) -> Iterator[dict]:
        symbols = (1, 5) if self.quick else GROWTH_SYMBOLS
        months = (1, 6) if self.quick else GROWTH_MONTHS
        plan = [("symbols", count, many(count), 1) for count in symbols]
        plan += [("months", count, MAJORS[:1], count) for count in months]
        with exchange(self.folder) as (url, _):
            for what, count, names, span in plan:
                runs = [self.archive_run(url, names, span, "5m") for _ in range(self.runs)]
                best = middle(runs, "seconds")
                found = case(
                    f"growth_{what}_{count}", best["seconds"], "s", best, note=f"{best['rows']:,} rows"
                )
                yield found | {"rows": best["rows"]}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("polars", "requests", "python-binance", "ccxt"):
        if importlib.util.find_spec(name.removeprefix("python-")):
            found[name] = importlib.metadata.version(name)
    return found


@contextmanager
def exchange(folder: Path, *options: str) -> Iterator[tuple[str, Callable[[str], dict]]]:
    """The URL of a replay exchange over the archive, and how to ask for its counts."""
    command = [sys.executable, "-m", "benchmarks.exchange_process", "--folder", str(folder / "archive")]
    with subprocess.Popen(
        [*command, *options], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        url = json.loads(server.stdout.readline())["url"]

        def ask(word: str) -> dict:
            server.stdin.write(word + "\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            return json.loads(server.stdout.readline())  # type: ignore[union-attr]

        yield url, ask
        server.stdin.close()
        server.wait(30)


def middle(runs: list[dict], measure: str) -> dict:
    """The run with the median of a measure."""
    return sorted(runs, key=lambda run: run[measure])[len(runs) // 2]


def case(
    name: str, ours: float, unit: str, run: dict, *, note: str, peer: dict | None = None, peer_name: str = ""
) -> dict:
    theirs = peer["rows_per_s"] if peer else None
    return {
        "case": name,
        "ours": round(ours, 3),
        "peer": round(theirs, 1) if theirs else None,
        "peer_name": peer_name or None,
        "unit": unit,
        "ratio": round(ours / theirs, 1) if theirs else None,
        "ours_peak_mb": round(run["peak_mb"], 1),
        "peer_peak_mb": round(peer["peak_mb"], 1) if peer else None,
        "note": note,
    }


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

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        reports = list(pool.map(one, symbols))
    seconds = time.perf_counter() - began
    rows = sum(report.rows for report in reports)
    used = {"zips": sum(report.zips for report in reports), "requests": sum(one.requests for one in reports)}
    return {"seconds": seconds, "rows": rows, "rows_per_s": rows / seconds, "peak_mb": peak_mb(), **used}


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


def markdown(report: dict) -> list[str]:
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    lines = [
        f"# Downloading candles on {report['hardware']}",
        "",
        f"{versions}; loopback, a process per run and one for the exchange on the same cores, whose load "
        f"was {report['load']} at the start; median of {report['runs']} runs (of rest_weight_efficiency "
        "one). Archive cases end in the lake: listed, downloaded, checked, unzipped, "
        "parsed, validated, written. Peak memory is the client's.",
        "",
        "| case | ours | peer | unit | ratio | peak MB ours | peak MB peer | what it took |",
        "|---|---:|---:|---|---:|---:|---:|---|",
    ]
    for one in report["cases"]:
        shown = [one[name] for name in ("ours", "peer", "unit", "ratio", "ours_peak_mb", "peer_peak_mb")]
        cells = [f"{cell:,}" if isinstance(cell, float) else cell or "" for cell in shown]
        label = f"{one['case']} ({one['peer_name']})" if one["peer_name"] else one["case"]
        lines.append(f"| {' | '.join(map(str, [label, *cells, one['note']]))} |")
    return lines


if __name__ == "__main__":
    main()
