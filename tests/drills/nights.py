"""Thirty nights in a row, most of them with something that goes wrong, and what must be true afterwards.

    python -m tests.drills.nights [--nights 30 | --faults hub-down,disk-full] [--seed 0] [--folder DIR] [--table FILE]

Prints a line a night and a table at the end; exits with 1 where anything that must be true is not.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from service.champion_models import ChampionModels
from storage.lake import Lake
from storage.ledger import Ledger
from storage.registry import read_champion, read_history
from storage.verify import verify_series
from tests.drills.faults import FAULTS
from tests.drills.site import DrillSite, drill_site

__all__ = ["Record", "broken", "main", "plan", "run_nights", "table"]

GOOD = ("promote", "keep", "reject")
DAY_MS = 86_400_000
GC_EVERY = 5
ONCE = ("hub-down", "mlflow-minute")  # a minute or two each
LEFT_MB = 4.0  # by a night, on average: its record and figures, and at most one more published model


@dataclass(frozen=True)
class Record:
    """One night as the table shows it."""

    number: int
    trouble: str
    struck: bool  # False where the night had ended before
    end: str  # promote, keep, failed, killed
    sentence: str  # why it is a bad night; empty for a good one
    seconds: float
    megabytes: float  # of the home, after it was tidied; 0 where it was not
    wrong: str = ""  # what must not be


def plan(nights: int, dice: random.Random) -> list[str]:
    """The first and the last night undisturbed; between them every fault, in an order that the dice decide."""
    kinds = [name for name in FAULTS if name != "nothing"]
    chosen: list[str] = []
    while len(chosen) < nights - 2:
        dice.shuffle(kinds)
        chosen += [name for name in kinds if name not in ONCE or name not in chosen]
    return ["nothing", *chosen[: nights - 2], "nothing"]


def run_nights(
    site: DrillSite, kinds: Sequence[str], dice: random.Random, *, tidy: bool = True
) -> Iterator[Record]:
    """One record a night.

    After a bad one half of the nights run again over the same candles, but for those that are struck in their midst:
    they need something to do. With `tidy` the home is tidied every few nights, and after the last.
    """
    end = ""
    for number, kind in enumerate(kinds, start=1):
        site.begin_mlflow()
        trouble = FAULTS[kind](site, dice)
        if end and (end in GOOD or trouble.meanwhile or dice.random() < 0.5):
            site.exchange.clock.advance(DAY_MS)
        told = site.night(trouble, seed=(number - 1) // 2)
        refused = [one for one in told if "found process" in one.sentence]
        one = next((one for one in told if one not in refused), told[0])
        end, sentence = _end(one.code, one.out), one.sentence
        wrong = ""
        if trouble.twice:
            sentence = sentence or (f"the other: {refused[0].sentence}" if refused else "")
            if len(refused) != 1:
                wrong = f"of two nights at once {len(refused)} were refused, expected one"
        if trouble.fails and end != "failed":
            wrong = f"ended with {end}, expected it to fail"
        if end == "failed" and not sentence:
            wrong = f"ended with {one.code} and no sentence: {one.err[-2000:]}"
        tidied = tidy and (number % GC_EVERY == 0 or number == len(kinds))
        if tidied:
            site.begin_mlflow()
            site.forget()
        yield Record(
            number=number,
            trouble=trouble.what,
            struck=one.struck,
            end=end,
            sentence="" if end == "killed" else sentence.replace(str(site.folder), ""),
            seconds=one.seconds,
            megabytes=site.megabytes() if tidied else 0.0,
            wrong=wrong,
        )


def broken(site: DrillSite, records: Sequence[Record]) -> list[str]:
    """What must be true after the drill and is not, a sentence each."""
    return [*_candles(site), *_champion(site), *_runs(site), *_nights(site, records), *_disk(records)]


def table(site: DrillSite, records: Sequence[Record]) -> str:
    """The records as markdown."""
    crashed = iter(_crashed(site))
    lines = ["| night | what went wrong | it ended | s | in one sentence |", "|---:|---|---|---:|---|"]
    for one in records:
        sentence = next(crashed, "") if one.end == "killed" else one.sentence
        trouble = one.trouble if one.struck else f"{one.trouble} (too late, it had ended)"
        lines.append(f"| {one.number} | {trouble} | {one.end} | {one.seconds:.0f} | {sentence} |")
    return "\n".join(lines)


def _end(code: int, out: str) -> str:
    if code == 0 and "Nothing new" in out:
        return "nothing new"
    if code == 0:
        return next((name for name in GOOD if f"Gate: {name}" in out), "no verdict")
    return "killed" if code < 0 else "failed"


def _candles(site: DrillSite) -> Iterator[str]:
    """Every closed candle of the exchange is there, once, as it was served."""
    for key, served in site.candles.items():
        closed = served.filter(served["close_time"].dt.epoch("ms") < site.now_ms)
        held = Lake(site.home.lake).read(key)
        if not held.equals(closed):
            yield f"{key}: expected the {len(closed)} closed candles, found {len(held)} others"
        yield from (
            f"{key}: {one}" for one in verify_series(Lake(site.home.lake), Ledger(site.home.lake), key)
        )


def _champion(site: DrillSite) -> Iterator[str]:
    """One champion, whom the registry, the Hub and the service know."""
    champion = read_champion(site.home, "demo")
    if champion is None:
        yield "expected a champion, found none"
        return
    newest = read_history(site.home, "demo")[-1].champion
    if newest.digest != champion.digest:
        yield f"the history ends with {newest.digest}, but {champion.digest} serves"
    version = MlflowClient(site.mlflow_url).get_model_version_by_alias("kronos-demo", "champion")
    if version.tags["kronos.digest"] != champion.digest:
        yield f"MLflow's champion is {version.tags['kronos.digest']}, but {champion.digest} serves"
    for part, one in zip((champion.tokenizer, champion.predictor), champion.published, strict=True):
        tagged = site.hub.repositories[one["repo_id"]].tags.get("champion")
        if tagged != one["revision"]:
            yield f"{one['repo_id']}: the tag champion is at {tagged}, expected at {one['revision']}"
            continue
        uploaded = site.hub.content(one["repo_id"], "model.safetensors", "champion")
        if _sha256(uploaded) != _sha256((site.home.root / part / "model.safetensors").read_bytes()):
            yield f"{one['repo_id']}: the Hub's weights are not those of {part}"
    champion_models = ChampionModels(site.home)
    champion_models.refresh()
    served = [one.digests for one in champion_models.models]
    if served != [(champion.tokenizer_digest, champion.predictor_digest)]:
        yield f"the service serves {served}, expected {champion.digest}"


def _runs(site: DrillSite) -> Iterator[str]:
    """Nothing is left running, in MLflow or in Prefect."""
    client = MlflowClient(site.mlflow_url)
    experiments = [one.experiment_id for one in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        yield f"MLflow run {run.info.run_id} is RUNNING"
    for run in site.flow_runs("RUNNING", "PENDING", "CANCELLING"):
        yield f"Prefect run {run['name']} is {run['state_type']}"
    for limit in site.asked("v2/concurrency_limits/filter", {}):
        if limit["active_slots"]:
            yield f"{limit['active_slots']} concurrency slot of {limit['name']} is taken"


def _nights(site: DrillSite, records: Sequence[Record]) -> Iterator[str]:
    """A killed night is explained by the run that came next, and the last, undisturbed one is good."""
    killed = [one for one in records if one.end == "killed"]
    if len(crashed := _crashed(site)) != len(killed):
        yield f"expected {len(killed)} crashed runs in Prefect for as many killed nights, found {len(crashed)}"
    for one in records:
        if one.wrong:
            yield f"night {one.number} ({one.trouble}): {one.wrong}"
    for trouble in {one.trouble for one in records} - {one.trouble for one in records if one.struck}:
        yield f"{trouble}: expected that in one night at least, found that it always came too late"
    if records[-1].end not in GOOD:
        yield f"the last night, undisturbed, ended with {records[-1].end}: {records[-1].sentence}"


def _crashed(site: DrillSite) -> list[str]:
    """What Prefect says of every crashed run, oldest first."""
    return [run["state"]["message"] for run in site.flow_runs("CRASHED")]


def _disk(records: Sequence[Record]) -> Iterator[str]:
    """What was tidied grows by little a night."""
    tidied = [one for one in records if one.megabytes]
    if not tidied:
        return
    first, last = tidied[0], tidied[-1]
    left = (last.megabytes - first.megabytes) / max(1, last.number - first.number)
    if left > LEFT_MB:
        yield f"a night left {left:.1f} MB in the home after it was tidied, expected at most {LEFT_MB}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    arguments = _arguments()
    dice = random.Random(arguments.seed)
    kinds = plan(arguments.nights, dice)
    if arguments.faults:
        kinds = ["nothing", *arguments.faults.split(","), "nothing"]
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kronos-drill-"))
    folder.mkdir(parents=True, exist_ok=True)
    text, wrong = _drill(folder.resolve(), kinds, dice)
    sys.stdout.write(text)
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
    if wrong:
        sys.exit(f"The home and the logs are in {folder}.")
    if not arguments.folder:
        shutil.rmtree(folder)


def _drill(folder: Path, kinds: Sequence[str], dice: random.Random) -> tuple[str, list[str]]:
    """What happened, as markdown, and what must be true and is not."""
    began, records = time.monotonic(), []
    with drill_site(folder, nights=len(kinds), mlflow=True) as site:
        for one in run_nights(site, kinds, dice):
            records.append(one)
            told = f"{one.trouble}; {one.end}, {one.seconds:.0f} s; {one.sentence}"
            sys.stdout.write(f"night {one.number}: {told}\n")
            sys.stdout.flush()
        wrong = broken(site, records)
        shown = table(site, records)
    tidied = ", ".join(f"{one.megabytes:.1f} after night {one.number}" for one in records if one.megabytes)
    took = f"It took {(time.monotonic() - began) / 60:.1f} minutes; the home, tidied, in MB: {tidied}."
    lines = [shown, "", took, "", *(wrong or ["Everything that must be true is."])]
    return "\n".join(lines) + "\n", wrong


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--faults", help="these alone, between two undisturbed nights: " + ", ".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the home and the logs here")
    parser.add_argument("--table", type=Path, help="write the table to this file as well")
    arguments = parser.parse_args()
    asked = set(arguments.faults.split(",")) if arguments.faults else set()
    if unknown := asked - set(FAULTS):
        parser.error(f"expected faults among {', '.join(FAULTS)}, found {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    main()
