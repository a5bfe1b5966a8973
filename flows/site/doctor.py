"""What is configured, reachable and missing."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Literal

import requests

from exchange.config import ExchangeConfig
from exchange.connect import Exchange
from exchange.errors import ExchangeError
from exchange.rest import RestClient
from kronos_model.errors import ModelError
from storage.errors import StorageError
from storage.lake import Lake
from storage.layout import Home
from storage.object_home import describe
from storage.registry import read_champion
from storage.schema import Market
from tasks.database import shown
from tasks.tracking.store import tracking_uri

__all__ = ["CheckResult", "examine", "repair"]

_TIMEOUT_S = 5.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the doctor's: ok, worth knowing, or missing."""

    state: Literal["ok", "note", "bad"]
    what: str
    found: str


def examine(home: Home) -> list[CheckResult]:
    """Home, hardware, exchange, Prefect, MLflow, Hub, champions. Asks the network briefly and changes nothing."""
    return [
        _home(home),
        *_object_storage(home),
        _device(),
        _lake(home),
        *_exchange(home),
        _server("Prefect", os.environ.get("PREFECT_API_URL"), "/health", f"embedded, in {home.prefect}"),
        _tracking(home),
        _hub(home),
        *_champions(home),
    ]


def _home(home: Home) -> CheckResult:
    """The home, or where it will be: the nearest folder above that is there."""
    place = next(one for one in (home.root, *home.root.parents) if one.exists())
    if not os.access(place, os.W_OK):
        return CheckResult(
            "bad", "home", f"{home.root} cannot be written; give the permission or choose another home"
        )
    free = shutil.disk_usage(place).free / _GB
    return CheckResult("ok" if free >= 2 else "note", "home", f"{home.root}, {free:.1f} GB free")


def _object_storage(home: Home) -> list[CheckResult]:
    told = describe(home.root)
    return [CheckResult("ok", "object storage", told)] if told else []


def _device() -> CheckResult:
    import torch

    if torch.cuda.is_available():
        return CheckResult("ok", "device", f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    return CheckResult(
        "note",
        "device",
        f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}; training is slow",
    )


def _lake(home: Home) -> CheckResult:
    lake = Lake(home.lake)
    try:
        spans = {key: lake.span(key) for key in lake.series()}
    except StorageError as error:
        return CheckResult("bad", "lake", str(error))
    rows = sum(span.rows for span in spans.values() if span)
    return CheckResult("ok" if rows else "note", "lake", f"{len(spans)} series, {rows:,} candles")


def _exchange(home: Home) -> list[CheckResult]:
    markets: dict[Market, str] = {"spot": "Binance spot", "um": "Binance USD-M futures"}
    shared = Exchange(home.lake, ExchangeConfig(timeout_s=_TIMEOUT_S, attempts=1), reads=True)
    with shared.clients(markets) as clients:
        return [_reach(markets[market], client) for market, client in clients.items()]


def _reach(what: str, client: RestClient) -> CheckResult:
    try:
        client.server_time_ms()
    except (ExchangeError, StorageError) as error:
        return CheckResult("note", what, str(error))
    return CheckResult("ok", what, f"{client.url} answers")


def _server(what: str, url: str | None, path: str, alone: str) -> CheckResult:
    if not url:
        return CheckResult("ok", what, alone)
    try:
        requests.get(url.rstrip("/") + path, timeout=_TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        return CheckResult(
            "bad",
            what,
            f"{shown(url)} does not answer ({type(error).__name__}); start it or unset its variable",
        )
    return CheckResult("ok", what, f"{shown(url)} answers")


def _tracking(home: Home) -> CheckResult:
    uri = tracking_uri(home)
    return _server("MLflow", uri if uri.startswith("http") else None, "/health", f"embedded, {shown(uri)}")


def _hub(home: Home) -> CheckResult:
    if not os.environ.get("HF_TOKEN"):
        return CheckResult("note", "Hub", f"no HF_TOKEN: models are published as folders in {home.hub}")
    from kronos_model.publish import check_token

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        return CheckResult(
            "ok", "Hub", f"{endpoint} knows the token of {check_token(os.environ['HF_TOKEN'], endpoint)}"
        )
    except ModelError as error:
        return CheckResult("bad", "Hub", str(error))


def repair(home: Home) -> None:
    """Move the mirrors of every champion back to what its champion.json says; what was wrong is logged."""
    from tasks.promotion import mend

    for recipe in _recipes(home):
        mend(home, recipe)


def _recipes(home: Home) -> list[str]:
    return [folder.parent.name for folder in sorted(home.models.glob("*/champion.json"))]


def _champions(home: Home) -> list[CheckResult]:
    if not (recipes := _recipes(home)):
        return [CheckResult("note", "champions", "none yet: `kronos run` promotes the first one")]
    from tasks.promotion import mismatches

    findings = []
    for recipe in recipes:
        what = f"champion of {recipe}"
        try:
            champion = read_champion(home, recipe)
            wrong = mismatches(home, recipe)
        except StorageError as error:
            findings.append(CheckResult("bad", what, str(error)))
            continue
        assert champion is not None
        findings.append(CheckResult("ok", what, f"{champion.predictor_digest} since {champion.since}"))
        findings += [
            CheckResult("bad", what, f"{one.found}; `kronos doctor --repair` mends it")
            if one.asked
            else CheckResult("note", what, one.found)
            for one in wrong
        ]
    return findings
