"""`kronos monitor` and `kronos replay`: a market as it moves. They import what they need when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.cli.options import KLINES, PORT, REHEARSAL_SPEED, SET
from flows.cli.terminal import names, start
from flows.cli.values import Number, WholeNumber, klines_folder

__all__ = ["monitor", "replay"]


@click.command()
@click.option(
    "--klines",
    type=klines_folder,
    metavar="DIR",
    help="Folder of klines, files named like um_DOGEUSDT_1h.parquet (or csv, json).",
)
@click.option(
    "--series", default="spot:BTCUSDT,um:DOGEUSDT", show_default=True, help="Which series to serve."
)
@click.option("--interval", default="1h", show_default=True, help="Candle interval.")
@click.option("--port", type=PORT, default=8900, show_default=True, help="Port on 127.0.0.1.")
@click.option(
    "--speed",
    type=Number(min=0),
    default=1.0,
    show_default=True,
    help="Exchange seconds per second; 0 stops the clock.",
)
@click.option(
    "--ahead",
    type=WholeNumber(min=0),
    default=1_000,
    show_default=True,
    help="Candles that are yet to come when the clock starts, half of the data at most; 0 starts it at their end.",
)
@click.option(
    "--seed",
    type=WholeNumber(min=0),
    default=0,
    show_default=True,
    help="Seed of the synthetic market.",
)
def replay(
    klines: str | None, series: str, interval: str, port: int, speed: float, ahead: int, seed: int
) -> None:
    """Serve klines the way Binance does, over REST, as a bulk archive and as streams, on 127.0.0.1, until Ctrl-C.

    Without --klines the market is SYNTHETIC: seeded random candles with volatility regimes, a daily rhythm and
    volume that follows volatility. They resemble a market and say nothing about any real one.
    """
    from exchange.replay.source import replay_exchange
    from flows.cli.screen import lines
    from flows.config import ConfigError
    from storage.schema import SeriesKey, utc_text

    if not names(series):
        raise ConfigError(f"Expected series to serve, found {series!r}; give --series such as um:DOGEUSDT.")
    keys = [SeriesKey.parse(name, interval) for name in names(series)]
    server = replay_exchange(klines or "synthetic", keys, seed=seed, port=port, speed=speed, ahead=ahead)
    served = f"{', '.join(map(str, keys))} from {klines or 'a synthetic market'} at {server.url}"
    clock = f"Its clock starts at {utc_text(server.clock.now_ms)} and runs at {speed:g} times real speed"
    urls = f"--set exchange.spot_url={server.url} --set exchange.um_url={server.url}"
    archive = f"--set archive.archive_url={server.url} --set archive.listing_url={server.url}"
    here = server.stream_config
    streams = (
        f"--set stream.spot_stream_url={here.spot_stream_url} --set stream.um_stream_url={here.um_stream_url}"
    )
    lines().print(f"{served} (Ctrl-C stops it). {clock}. In another terminal:")
    lines().print(f"kronos run --recipe demo --set replay= {urls} {archive}")
    lines().print(f"kronos monitor --series {series} --interval {interval} {urls} {streams}")
    server.serve_forever()


@click.command()
@click.option(
    "--series",
    default="spot:BTCUSDT",
    show_default=True,
    help="What to watch: market:SYMBOL, comma-separated.",
)
@click.option("--interval", default="1m", show_default=True, help="Candle interval.")
@click.option("--backfill", default="24h", show_default=True, help="How far back to fill at the start.")
@click.option(
    "--every", default="60s", show_default=True, help="How often to poll where there is no WebSocket."
)
@click.option("--csv", type=click.Path(path_type=Path), help="Append closed candles to this file.")
@click.option("--json", type=click.Path(path_type=Path), help="Keep the latest state in this file.")
@click.option("--duration", help="Stop after so long, such as 10m [at Ctrl-C].")
@KLINES
@REHEARSAL_SPEED
@SET
@click.pass_obj
def monitor(obj: dict[str, Any], /, **options: Any) -> None:
    """Keep series of the lake up to date as their candles close, until Ctrl-C.

    --klines synthetic rehearses it without the internet.
    """
    from flows.config import parse_assignments
    from flows.watching import watch_config

    settings: dict[str, Any] = {**parse_assignments(options.pop("assignments"))}
    if klines := options.pop("klines"):
        settings["replay"] = klines
    config = watch_config(names(options.pop("series")), settings=settings, **options)
    config.keys()
    home = start(obj)
    from flows.cli.monitor_screen import watch

    watch(home, config)
