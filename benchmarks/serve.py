"""The service under load: 50 clients at once, a new champion in the middle, memory watched.

    python benchmarks/serve.py [--cases forecasts_per_s,p99_ms] [--quick] [--save]

Every client asks for a forecast (tiny model, 64 candles of context, 12 ahead, 100 paths), each with a seed that
nobody has asked before, and asks again when it has its answer. The peer is the same service drawing one request
at a time (batch_rows=1): what the sampler's batches are worth. Both run as `kronos serve` in a process of its own,
with one sampler thread; clients and service share the machine. An answer other than 200, or a connection that
ends, is an error and fails the run.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import ROOT, machine, write_results
from exchange.replay import synthetic_market
from kronos_model.config import PRESETS
from kronos_model.files import model_digest
from kronos_model.hub import scratch_pair, write_metadata
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Source
from storage.registry import Champion, write_champion
from storage.schema import SeriesKey

CASES = {
    "forecasts_per_s": "1/s",
    "p50_ms": "ms",
    "p99_ms": "ms",
    "cpu_ms_per_forecast": "ms",
    "rss_growth_mb": "MB",
}
CLIENTS, SECONDS, QUICK_SECONDS = 50, 60.0, 8.0
LOOKBACK, HORIZON, SAMPLES = 64, 12, 100
SERIES = ("spot:BTCUSDT", "um:DOGEUSDT")
PEER = "one request at a time"
WARM = 0.25  # of the time, before memory is compared
PATIENCE_S = 600  # a machine that does other work besides makes slow answers, not errors
START_MS = 1_704_067_200_000  # 2024-01-01 UTC


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="which cases to report, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SECONDS:g} s each; ends within a minute"
    )
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/")
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"expected cases out of {', '.join(CASES)}, found {', '.join(unknown)}")
    report = compare(cases, QUICK_SECONDS if arguments.quick else SECONDS)
    if arguments.save:
        save(report)
    print(json.dumps(report))


def compare(cases: list[str], seconds: float) -> dict:
    """The service, then its peer, each over a home of its own."""
    ours = measure(seconds, swap=True)
    peer = measure(seconds, "--set", "batch_rows=1", swap=False)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "fastapi", "uvicorn")}
    return {
        "theme": "serve",
        **machine(),
        "versions": {"python": platform.python_version(), **versions},
        "cases": [case_of(name, ours, peer) for name in cases],
        "load": {"clients": CLIENTS, "seconds": seconds, "samples": SAMPLES, "horizon": HORIZON},
        "ours": ours,
        "peer": peer,
    }


def case_of(name: str, ours: dict, peer: dict) -> dict:
    """One line: a ratio above 1 means that ours is better."""
    more_is_better = name == "forecasts_per_s"
    high, low = (ours[name], peer[name]) if more_is_better else (peer[name], ours[name])
    return {
        "case": name,
        "ours": ours[name],
        "peer": peer[name],
        "peer_name": PEER,
        "unit": CASES[name],
        "ratio": round(high / low, 2) if low > 0 and name != "rss_growth_mb" else None,
        "ours_peak_mb": max(ours["rss_mb"]),
        "peer_peak_mb": max(peer["rss_mb"]),
    }


def measure(seconds: float, *options: str, swap: bool) -> dict:
    """One service under load."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home.at(folder)
        lake = Lake(home.lake)
        keys = [SeriesKey.parse(name, "1h") for name in SERIES]
        for key, candles in synthetic_market(keys, start_ms=START_MS, count=1_000, seed=5).items():
            lake.upsert(key, candles, source=Source("import", "synthetic"))
        old, new = make_model(home, 0), make_model(home, 1)
        write_champion(home, "demo", old)
        with service(home, *options) as (host, port, pid):
            found = asyncio.run(load(host, port, pid, seconds, home, new if swap else None))
    assert not found.errors, Counter(found.errors).most_common(3)
    late = [answer for answer in found.answers if answer[0] > found.swapped_at]
    first = found.rss_mb[int(WARM * len(found.rss_mb))]
    times = sorted(1000 * taken for _, taken, _ in found.answers)
    result = {
        "forecasts": len(times),
        "errors": found.errors,
        "forecasts_per_s": round(len(times) / (found.answers[-1][0] - found.began), 1),
        "p50_ms": round(statistics.median(times), 1),
        "p99_ms": round(times[int(0.99 * (len(times) - 1))], 1),
        "slowest_ms": round(times[-1], 1),
        "machine_load": round(os.getloadavg()[0], 1),
        "cpu_ms_per_forecast": round(1000 * found.cpu_s / len(times), 1),
        "rss_growth_mb": round(found.rss_mb[-1] - first, 1),
        "rss_mb": found.rss_mb,
    }
    if swap:
        by = Counter(digest for _, _, digest in found.answers)
        assert set(by) == {old.predictor_digest, new.predictor_digest}, by
        seen = min(at for at, _, digest in found.answers if digest == new.predictor_digest)
        result["swap"] = {
            "old_answers": by[old.predictor_digest],
            "new_answers": by[new.predictor_digest],
            "first_new_after_s": round(seen - found.swapped_at, 2),
            "slowest_after_ms": round(1000 * max(taken for _, taken, _ in late), 1),
        }
    print({name: value for name, value in result.items() if name != "rss_mb"}, file=sys.stderr)
    return result


def make_model(home: Home, seed: int) -> Champion:
    """The tiny model of a seed, untrained: it takes the time that a trained one takes."""
    pair = scratch_pair(PRESETS["tiny"], home.models / "scratch" / str(seed), seed)
    told = {"interval": "1h", "lookback": LOOKBACK, "horizon": HORIZON, "training": {"series": list(SERIES)}}
    write_metadata(pair.predictor, told)
    return Champion(
        tokenizer=str(pair.tokenizer.relative_to(home.root)),
        tokenizer_digest=model_digest(pair.tokenizer),
        predictor=str(pair.predictor.relative_to(home.root)),
        predictor_digest=model_digest(pair.predictor),
        night=f"night-{seed}",
        mlflow_run="",
        since="2024-02-11T00:00:00+00:00",
        reasons=("for a benchmark",),
    )


@contextlib.contextmanager
def service(home: Home, *options: str) -> Iterator[tuple[str, int, int]]:
    """`kronos serve` in a process of its own: where it answers, and its process id."""
    command = [
        sys.executable, "-m", "flows.cli", "--home", str(home.root), "serve", "--port", "0", "--set", "threads=1",
        "--set", f"timeout_s={PATIENCE_S}", *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = home.root / "serve.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, cwd=ROOT, stderr=stderr, env=environment) as process,
    ):
        try:
            while not (found := re.search(r"http://([\d.]+):(\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield found[1], int(found[2]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(90)


@dataclass
class Found:
    """When each answer came, how long it took, by which model; what went wrong; memory by the second."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    swapped_at: float = 0.0
    cpu_s: float = 0.0


async def load(host: str, port: int, pid: int, seconds: float, home: Home, new: Champion | None) -> Found:
    """All clients at once, until the time is over; each then waits for its last answer."""
    found, spent = Found(), cpu_s(pid)
    began = found.began
    clients = [
        asyncio.create_task(client(number, host, port, began + seconds, found, new))
        for number in range(CLIENTS)
    ]
    while time.perf_counter() < began + seconds:
        found.rss_mb.append(rss_mb(pid))
        if new and not found.swapped_at and time.perf_counter() > began + seconds / 2:
            found.swapped_at = time.perf_counter()
            write_champion(home, "demo", new)
        await asyncio.sleep(1)
    await asyncio.gather(*clients)
    found.rss_mb.append(rss_mb(pid))
    found.cpu_s = cpu_s(pid) - spent
    return found


async def client(number: int, host: str, port: int, end: float, found: Found, new: Champion | None) -> None:
    """One connection that is kept, one question after the other; with a new champion until it has answered."""
    reader, writer = await asyncio.open_connection(host, port)
    asked, seen = 0, new is None
    try:
        while (began := time.perf_counter()) < end or not seen:
            asked += 1
            body = json.dumps(
                {"symbol": SERIES[number % 2], "samples": SAMPLES, "seed": number * 1_000_000 + asked}
            )
            head = f"POST /forecast HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", answer)
            assert size is not None, answer
            told = await reader.readexactly(int(size[1]))
            if b" 200 " not in answer.split(b"\r\n", 1)[0]:
                found.errors.append(told.decode())
                continue
            now, digest = time.perf_counter(), json.loads(told)["predictor"]
            found.answers.append((now, now - began, digest))
            seen = seen or (new is not None and digest == new.predictor_digest)
    except (OSError, asyncio.IncompleteReadError) as error:
        found.errors.append(f"{type(error).__name__}: {error}")
    finally:
        writer.close()


def rss_mb(pid: int) -> float:
    """The resident set of a process (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds (Linux): what a busy machine does not distort much."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def save(report: dict) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    ours, peer, load = report["ours"], report["peer"], report["load"]
    swap = ours["swap"]
    series = ", ".join(f"{value:.0f}" for value in ours["rss_mb"][:: max(1, len(ours["rss_mb"]) // 12)])
    lines = [
        f"# Serving {load['clients']} clients for {load['seconds']:g} s on {report['hardware']}",
        "",
        f"The machine's load average was {ours['machine_load']} and {peer['machine_load']} on {os.cpu_count()} cores.",
        f"Tiny model, {SAMPLES} paths of {HORIZON} candles, every question new; clients and service share the "
        f"machine; {versions}. The peer is the same service, {PEER}.",
        f"{ours['forecasts']:,} forecasts, {len(ours['errors'])} errors. A new champion after half the time: the first "
        f"answer by it came {swap['first_new_after_s']} s later, the slowest answer after it took "
        f"{swap['slowest_after_ms']:.0f} ms, nothing was dropped. Resident memory over time, MB: {series}.",
        "",
        "| case | ours | peer | unit | ratio | peak MB ours | peak MB peer |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for one in report["cases"]:
        ratio = "" if one["ratio"] is None else one["ratio"]
        lines.append(
            f"| {one['case']} | {one['ours']} | {one['peer']} | {one['unit']} | {ratio} | {one['ours_peak_mb']} "
            f"| {one['peer_peak_mb']} |"
        )
    write_results(report, lines)


if __name__ == "__main__":
    main()
