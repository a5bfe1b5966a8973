"""Whether the lake is sound, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.cli.candle_screen import chosen_series, wide_console
from flows.recipes import configure
from storage.lake import Lake
from storage.layout import Home
from storage.ledger import Ledger
from storage.schema import SeriesKey
from storage.verify import Finding, verify_series

if TYPE_CHECKING:
    from exchange.connect import Exchange

__all__ = ["verify_lake"]


def verify_lake(
    home: Home,
    names: Sequence[str],
    *,
    interval: str | None,
    sample: int,
    seed: int,
    settings: Mapping[str, Any],
) -> bool:
    """Whether every series is sound; what is wrong is printed, each with its remedy."""
    lake, ledger, screen = Lake(home.lake), Ledger(home.lake), wide_console()
    keys = chosen_series(lake, home, names, interval)
    config = configure("demo", settings)
    findings: dict[SeriesKey, list[Finding]] = {key: verify_series(lake, ledger, key) for key in keys}
    if sample:
        from exchange.connect import connected

        places = (config.exchange, config.archive)
        with connected(home.lake, config.replay, keys, *places, seed=config.seed, reads=True) as exchange:
            for key in keys:
                if not findings[key]:
                    findings[key] += _compare(exchange, lake, ledger, key, sample=sample, seed=seed)
    compared = f"{sample} pages and zips of each compared with the exchange" if sample else "nothing compared"
    for key, wrong in findings.items():
        state = f"[red]{len(wrong)} wrong[/]" if wrong else "[green]sound[/]"
        screen.print(f"{key}: {state}, {len(lake.files(key))} months", highlight=False)
        for finding in wrong:
            screen.print(f"  {finding}", highlight=False, soft_wrap=True, markup=False)
    total = sum(map(len, findings.values()))
    screen.print(f"{len(keys)} series read again, {compared}: {total or 'nothing'} wrong.")
    return total == 0


def _compare(
    exchange: Exchange, lake: Lake, ledger: Ledger, key: SeriesKey, *, sample: int, seed: int
) -> list[Finding]:
    from exchange.audit import compare_archive, compare_pages

    with exchange.client(key.market) as client:
        findings = compare_pages(client, lake, key, pages=sample, seed=seed)
    archive = exchange.archive(key.market)
    if archive is not None:
        findings += compare_archive(archive, lake, ledger, key, parts=sample, seed=seed)
    return findings
