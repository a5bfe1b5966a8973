"""`kronos serve`. It imports what it needs when it runs."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from flows.cli.options import PORT, REHEARSAL_SPEED, SET
from flows.cli.terminal import names, start
from flows.cli.values import klines_folder

if TYPE_CHECKING:
    from service.follow import Follower
    from storage.layout import Home

__all__ = ["serve"]

logger = logging.getLogger(__name__)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to answer on.")
@click.option("--port", type=PORT, default=8765, show_default=True, help="Port; 0: any.")
@click.option(
    "--recipe", "recipes", help="Only these recipes' champions, comma-separated [all that have one]."
)
@click.option("--follow", is_flag=True, help="Append candles as they close, and show the price now.")
@click.option(
    "--klines",
    type=klines_folder,
    metavar="DIR",
    help="With --follow: rehearse on a replay exchange over this folder, or 'synthetic', instead of Binance.",
)
@REHEARSAL_SPEED
@SET
@click.pass_obj
def serve(
    obj: dict[str, Any],
    host: str,
    port: int,
    recipes: str | None,
    follow: bool,
    klines: str | None,
    speed: float,
    assignments: tuple[str, ...],
) -> None:
    """Answer forecasts over HTTP and show the dashboard, until Ctrl-C.

    Settings are those of the service, such as max_samples=500, queue=64 or sampling.temperature=0.8. With
    KRONOS_SERVE_TOKEN set, only who sends it as a bearer token is answered; it is needed for any address but this
    machine's own.
    """
    from flows.config import override, parse_assignments
    from service.config import ServiceConfig

    if klines and not follow:
        raise click.UsageError("--klines needs --follow")
    settings: dict[str, Any] = {**parse_assignments(assignments)}
    config = override(ServiceConfig(recipes=tuple(names(recipes or ""))), settings)
    home = start(obj)
    from service.server import TOKEN_VARIABLE, check_exposure
    from service.server import serve as answer
    from storage.object_home import kept_fresh

    token = os.environ.get(TOKEN_VARIABLE) or None
    check_exposure(host, token)
    with ExitStack() as stack:
        stack.enter_context(home.writing("following candles") if follow else kept_fresh(home.root))
        follower = _follower(home, klines, speed, stack) if follow else None
        answer(home, config, host=host, port=port, token=token, follower=follower)


def _follower(home: Home, klines: str | None, speed: float, stack: ExitStack) -> Follower:
    """Follows all series of the lake, on Binance or on a replay exchange that lives as long as the stack."""
    from exchange.config import ExchangeConfig
    from exchange.stream import StreamConfig
    from service.follow import Follower
    from storage.errors import LakeError
    from storage.lake import Lake
    from tasks.monitor import rehearsed

    keys = Lake(home.lake).series()
    if not keys:
        raise LakeError(f"Expected series to follow in {home.lake}, found none; run `kronos ingest` first.")
    places = stack.enter_context(rehearsed(klines or "", keys, ExchangeConfig(), StreamConfig(), speed=speed))
    return Follower(home, keys, *places)
