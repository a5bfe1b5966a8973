"""A model of its own for every series of a recipe: one ingest for all, then one night each, several at a time."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import date
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.config import RunConfig
from flows.environment import open_home
from flows.failures import explain
from flows.forms import RunSettings, SeriesName, Unchanged
from flows.home_access import with_home
from flows.ingest import ingest_series
from flows.nightly import run_night
from flows.own_nights import SCHEDULER_URL, own_nights
from flows.recipes import IntervalName, RecipeName, configure
from flows.run_names import run_name
from storage.errors import StorageError
from storage.layout import Home
from tasks.download import IncompleteIngest
from tasks.fan_out import Ended, NightOrder, can_fan_out, fanned_out
from tasks.publish import check_publishing
from tasks.refs import IngestRef
from tasks.reports.prefect_artifacts import show_text
from tasks.tracking.runs import end_dead_runs
from tasks.train import base_model

__all__ = ["IncompleteNights", "each", "night"]

logger = logging.getLogger(__name__)

Workers = Annotated[int, Field(ge=1, le=64)]
Scheduler = Annotated[str, Field(pattern=SCHEDULER_URL, examples=["tcp://10.0.0.1:8786"])]


class IncompleteNights(StorageError):  # noqa: N818  # it says what happened
    """Some nights failed; the others are done."""

    def __init__(self, message: str, nights: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.nights = nights


@flow(name="each", flow_run_name=run_name)
def each(
    recipe: RecipeName = "demo",
    series: list[SeriesName] | Unchanged = None,
    interval: IntervalName | Unchanged = None,
    start: date | Unchanged = None,
    end: date | Unchanged = None,
    settings: RunSettings = None,
    workers: Workers = 1,
    cluster: Scheduler | Unchanged = None,
) -> list[dict[str, Any]] | State:
    """Train, judge, publish and forecast with a model of its own for every series of a recipe.

    Raises IncompleteNights, after the others are done, where some nights failed.

    Args:
        recipe: Named configuration of every night; demo runs offline, `kronos recipes` describes all.
        series: Series to use instead of the recipe's, each market:SYMBOL (spot or um), such as um:DOGEUSDT.
        interval: Candle interval to use instead of the recipe's, such as 1h or 4h.
        start: First day to use, UTC. Unchanged: the recipe's, or else since the listing.
        end: First day not to use, UTC. Unchanged: the recipe's, or else up to the newest closed candle.
        settings: Anything else, by section; what stays empty is as in the recipe, which `kronos recipes NAME` lists.
        workers: Nights at a time, each in a process of its own on this machine; more than 1 need the extra dask.
        cluster: Dask scheduler whose workers run the nights instead, such as tcp://10.0.0.1:8786; they share the home.
    """
    config, nights, asked = own_nights(
        recipe, settings, series=series, interval=interval, start=start, end=end
    )
    home = open_home()
    return with_home(
        home,
        f"each {recipe}",
        lambda: _run(home, config, nights, asked, workers=workers, cluster=cluster),
    )


@flow(name="night", flow_run_name=run_name)
def night(
    recipe: RecipeName,
    ingested: IngestRef,
    interval: IntervalName | None = None,
    start: date | None = None,
    end: date | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One night of several, for the series that is in the recipe's name; only a run of `each` starts it.

    Args:
        recipe: Recipe of one series, such as majors_1h-um-DOGEUSDT.
        ingested: What the ingest for all nights brought of this series.
        interval: Candle interval to use instead of the recipe's.
        start: First day to use, UTC.
        end: First day not to use, UTC.
        settings: Other settings by dotted name.
    """
    config = configure(recipe, settings, interval=interval, start=start, end=end)
    return run_night(open_home(), config, ingested=ingested)


def sentence(error: BaseException) -> str:
    """What went wrong in a night, also where nobody has a remedy for it."""
    return (explain(error) or f"{type(error).__name__}: {error}").rstrip(".")


def _run(
    home: Home,
    config: RunConfig,
    nights: Sequence[RunConfig],
    asked: Mapping[str, Any],
    *,
    workers: int,
    cluster: str | None,
) -> list[dict[str, Any]]:
    """Ingest for all, then every night."""
    check_publishing(config.publish)
    # Once and in one process: the others find them made, or fetched.
    base_model(home, config.model.preset, config.model.weights, config.seed)
    try:
        ingested = ingest_series(home, config)
    except IncompleteIngest as error:  # those that the exchange did not give are told at the end
        ingested = error.ingested
    end_dead_runs(home)
    missing = {one.series: one.reason for one in ingested.failures}
    failures = {key.name: missing[str(key)] for key in config.keys() if str(key) in missing}  # noqa: SIM118
    orders = [
        NightOrder(
            recipe=one.recipe,
            series=one.series[0],
            parameters={"recipe": one.recipe, "ingested": _only(ingested, one.series[0]), **asked},
        )
        for one in nights
        if one.series[0] not in failures
    ]
    summaries: dict[str, dict[str, Any]] = {}
    with closing(_all_of(home, orders, workers=workers, cluster=cluster)) as ends:
        for ended in ends:
            name = ended.order.series
            if ended.summary is None:
                failures[name] = ended.failure
            else:
                summaries[name] = ended.summary
            result = ended.summary["verdict"] if ended.summary else f"failed, {ended.failure}"
            logger.info("%s: %s (%s of %s nights)", name, result, len(summaries) + len(failures), len(nights))
    done = [summaries[name] for name in config.series if name in summaries]
    show_text(_table(done, failures), "nights", "Every series and what came of its night")
    if failures:
        raise IncompleteNights(_failure(len(nights), failures), done)
    return done


def _all_of(
    home: Home, orders: Sequence[NightOrder], *, workers: int, cluster: str | None
) -> Generator[Ended, None, None]:
    """The nights as they end."""
    at_once = min(workers, len(orders))
    if cluster is None and at_once > 1 and not can_fan_out():
        logger.warning("The extra `dask` is not installed, so the nights run one after another.")
        at_once = 1
    if cluster is None and at_once <= 1:
        yield from map(_here, orders)
        return
    where = cluster or f"{at_once} processes"
    logger.info("%s nights on %s; their logs are in %s", len(orders), where, home.root / "logs")
    with fanned_out(home, workers=at_once, address=cluster) as ready:
        yield from ready.run(orders)


def _here(order: NightOrder) -> Ended:
    """A night in this process; its failure is told, an interrupt goes on."""
    state: Any = night(**order.parameters, return_state=True)
    found = state.result(raise_on_failure=False)
    if isinstance(found, BaseException):
        return Ended(order=order, failure=sentence(found))
    return Ended(order=order, summary=found)


def _only(ingested: IngestRef, name: str) -> IngestRef:
    series = tuple(one for one in ingested.series if one.series == name)
    return replace(ingested, series=series, failures=())


def _failure(count: int, failures: Mapping[str, str]) -> str:
    others = ", the others are done" if len(failures) < count else ""
    reasons = " | ".join(f"{series}: {reason.rstrip('.')}" for series, reason in failures.items())
    return f"{len(failures)} of {count} nights failed{others}: {reasons}."


def _table(done: Iterable[Mapping[str, Any]], failures: Mapping[str, str]) -> str:
    """Markdown: one line a series."""
    lines = ["| series | recipe | gate | why |", "|---|---|---|---|"]
    for one in done:
        why = "the same candles and settings as before" if one["nothing_new"] else "; ".join(one["reasons"])
        series = ", ".join(each["series"] for each in one["candles"])
        lines.append(f"| {series} | {one['recipe']} | {one['verdict']} | {why} |")
    lines += [f"| {series} | | failed | {reason} |" for series, reason in failures.items()]
    return "\n".join(lines)
