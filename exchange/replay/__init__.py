"""A loopback Binance for demos and tests: real wire formats, limits and faults, without the internet."""

from exchange.replay.archive_style import ArchiveStyle, PartFault
from exchange.replay.clock import ReplayClock
from exchange.replay.faults import Fault
from exchange.replay.replay_server import ReplayExchange, ReplayRequest
from exchange.replay.synthetic import synthetic_market

__all__ = [
    "ArchiveStyle",
    "Fault",
    "PartFault",
    "ReplayClock",
    "ReplayExchange",
    "ReplayRequest",
    "synthetic_market",
]
