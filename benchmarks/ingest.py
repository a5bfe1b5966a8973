"""Downloading candles: the archive and the REST API into the lake, against public clients of Binance.

    python benchmarks/ingest.py [--cases archive_rows_per_s,noop_rerun] [--quick | --save] [--folder DIR]

The exchange is the replay exchange on loopback, in a process of its own, with an archive on disk that is
written before (a minute; kept in DIR, if one is given). Each run is a process of its own into an empty lake.
ccxt is found on PYTHONPATH. Saved are the cases that ran; of others what was saved before, each with its load.
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

from benchmarks.harness import ROOT, machine, results_page, run_json, write_results
from benchmarks.ingest_sides import MAJORS, SIDES

CASES = (
    "archive_rows_per_s",
    "long_range",
    "noop_rerun",
    "rest_weight_efficiency",
    "vs_python_binance",
    "vs_ccxt",
    "growth",
)
END = datetime(2025, 7, 1, tzinfo=UTC)
END_MS = int(END.timestamp() * 1000)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to report, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help="fewer months, days and runs; ends within a minute"
    )
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    parser.add_argument("--folder", type=Path, help="where the archive is kept for the next run")
    parser.add_argument("--side", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side.pop("side")](**arguments.side)))
        return
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    if arguments.quick and arguments.save:
        parser.error("expected --quick or --save, found both; what is saved takes its time")
    with tempfile.TemporaryDirectory(prefix="ingest-") as name:
        report = Bench(arguments.folder or Path(name), Path(name), quick=arguments.quick).report(cases)
    if arguments.save:
        save(report)
    print(json.dumps(report))


def save(report: dict) -> None:
    """Write the report, with the cases of an earlier one that did not run now, and the picture of growth."""
    page = results_page(report)
    earlier = json.loads(page.with_suffix(".json").read_text())["cases"] if page.exists() else []
    fresh = {one["case"] for one in report["cases"]}
    cases = report["cases"] + [one for one in earlier if one["case"] not in fresh]
    whole = report | {"cases": sorted(cases, key=_place)}
    write_results(whole, markdown(whole))
    draw_growth(whole, page.with_name(f"{page.stem}_growth.png"))


def _place(one: dict) -> int:
    """Where a case stands among all."""
    return next(number for number, name in enumerate(CASES) if one["case"].startswith(name))


class Bench:
    """All cases over one archive, each run into a lake of its own."""

    def __init__(self, folder: Path, lakes: Path, *, quick: bool) -> None:
        self.folder, self.lakes, self.quick = folder, lakes, quick
        self.months, self.longest = (2, 4) if quick else (24, max(GROWTH_MONTHS))
        self.grown = [count for count in GROWTH_SYMBOLS if count <= (5 if quick else 50)]
        self.runs = 1 if quick else RUNS
        self.serial = 0

    def report(self, cases: list[str]) -> dict:
        long = self.longest if {"growth", "long_range"} & set(cases) else self.months
        build = [(symbol, "1m", long if "long_range" in cases else self.months) for symbol in MAJORS[1:]]
        build += [(MAJORS[0], "1m", long)]
        if "growth" in cases:
            build += [(symbol, "5m", 1) for symbol in many(max(self.grown))]
        archive = ["--folder", str(self.folder / "archive"), "--build", json.dumps(build)]
        subprocess.run([sys.executable, "-m", "benchmarks.exchange_process", *archive], cwd=ROOT, check=True)
        made = [
            one | {"load": round(os.getloadavg()[0], 1)} for case in cases for one in getattr(self, case)()
        ]
        return {
            "theme": "ingest",
            **machine(),
            "versions": versions(),
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
        return str(self.lakes / f"lake{self.serial}")

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

    def long_range(self) -> Iterator[dict]:
        """Peak memory must not grow with the range."""
        for symbols in (MAJORS[:1], MAJORS):
            with exchange(self.folder) as (url, _):
                run = self.archive_run(url, symbols, self.longest)
            note = f"{self.longest} months of 1m, {run['rows']:,} rows, {run['zips']} zips, {run['seconds']:.1f} s"
            yield case(f"long_range_{len(symbols)}", run["rows_per_s"], "rows/s", run, note=note)

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
        runs = [self._paged(7 if self.quick else 12) for _ in range(self.runs)]  # months of 44 pages each
        run, shares = middle(runs, "share"), [f"{one['share']:.3f}" for one in runs]
        note = (
            f"of the weight allowed, median of the whole minutes ({SPEED:.0f} times faster) of each run; runs "
            f"{', '.join(shares)}; "
            f"{sum(one['refused'] for one in runs)} x 429; weight of klines {run['weight']} "
            f"where the cheapest paging costs {-(-run['rows'] // 1000) * 2}"
        )
        yield case("rest_weight_efficiency", run["share"], "share", run, note=note)

    def _paged(self, months: int) -> dict:
        """One download over REST alone, and the share of the weight limit that it used."""
        epoch = time.time()
        options = ["--limit", str(LIMIT), "--speed", str(SPEED), "--epoch", str(epoch)]
        with exchange(self.folder, "--rest-months", str(months), *options) as (url, ask):
            ask("forget")
            span = {"start_ms": month_ms(-months), "end_ms": END_MS}
            where = {"url": url, "root": self.home(), "symbols": MAJORS[:1], "interval": "1m"}
            run = self.side("ours", **where, **span, archive=False, epoch=epoch, speed=SPEED)
            asked = ask("counts")
        minutes = [weight for weight in asked["per_minute"] if weight][1:]  # it began within the first one
        refused, weight = asked["statuses"].get("429", 0), asked["klines_weight"]
        return run | {"share": statistics.median(minutes) / LIMIT, "refused": refused, "weight": weight}

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
        months = [count for count in GROWTH_MONTHS if count <= self.longest]
        plan = [("symbols", count, many(count), 1, "5m") for count in self.grown]
        plan += [("months", count, MAJORS[:1], count, "1m") for count in months]
        with exchange(self.folder) as (url, _):
            for what, count, names, span, interval in plan:
                runs = [self.archive_run(url, names, span, interval) for _ in range(self.runs)]
                best = middle(runs, "seconds")
                note = f"{count} {what} of {interval}, {best['rows']:,} rows"
                yield case(f"growth_{what}_{count}", best["seconds"], "s", best, note=note) | {
                    "rows": best["rows"]
                }


def draw_growth(report: dict, target: Path) -> None:
    """Time and memory of the growth cases against rows, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    for what, label in (
        ("symbols", "1 to 50 symbols, a month of 5m"),
        ("months", "1 to 60 months of 1m, a symbol"),
    ):
        found = [one for one in report["cases"] if one["case"].startswith(f"growth_{what}_")]
        rows = [one["rows"] for one in found]
        time_axis.plot(rows, [one["ours"] for one in found], marker="o", label=label)
        memory_axis.plot(rows, [one["ours_peak_mb"] for one in found], marker="o", label=label)
    time_axis.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds", title="Time")
    memory_axis.set(xscale="log", ylim=(0, None), xlabel="rows", ylabel="peak MB", title="Memory")
    time_axis.legend(frameon=False)
    for axis in (time_axis, memory_axis):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(target)


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
        "cpu_s": round(run["cpu_s"], 2),
        "note": note,
    }


def markdown(report: dict) -> list[str]:
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    picture = results_page(report).stem + "_growth.png"
    lines = [
        f"# Downloading candles on {report['hardware']}",
        "",
        f"{versions}; loopback, a process per run and one for the exchange on the same cores; median of "
        f"{report['runs']} runs (of long_range one). Archive cases end in the lake: listed, downloaded, "
        "checked, unzipped, parsed, validated, written. Peak memory and CPU seconds are the client's; load is "
        "that of the last minute of the case, of which these processes themselves make about 2.",
        "",
        "| case | ours | peer | unit | ratio | peak MB ours | peak MB peer | CPU s | load | what it took |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for one in report["cases"]:
        shown = [
            one.get(name)
            for name in ("ours", "peer", "unit", "ratio", "ours_peak_mb", "peer_peak_mb", "cpu_s", "load")
        ]
        cells = [f"{cell:,}" if isinstance(cell, float) else cell or "" for cell in shown]
        label = f"{one['case']} ({one['peer_name']})" if one["peer_name"] else one["case"]
        lines.append(f"| {' | '.join(map(str, [label, *cells, one['note']]))} |")
    if any(one["case"].startswith("growth") for one in report["cases"]):
        lines += ["", f"![Time and memory against rows]({picture})"]
    return lines


if __name__ == "__main__":
    main()
