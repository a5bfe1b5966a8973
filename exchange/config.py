"""Where the exchange and its archive are, and how they are asked."""

from typing import Annotated

from kronos_model.settings import Bounds, Count, Seconds, Written, settings
from storage.schema import Market

__all__ = ["ArchiveConfig", "ExchangeConfig", "Url"]

_URL = r"https?://[^/:\s]\S*"
Url = Annotated[str, Written(pattern=_URL, words="a URL such as https://api.binance.com")]
MaybeUrl = Annotated[
    str, Written(pattern=f"({_URL})?", words="a URL such as https://api.binance.com, or nothing")
]


@settings
class ExchangeConfig:
    """Where Binance is, and how patient to be with it."""

    spot_url: Url = "https://api.binance.com"
    """Base URL of the spot REST API."""
    spot_fallback_url: MaybeUrl = "https://data-api.binance.vision"
    """Base URL of Binance's mirror for spot market data, asked where spot_url does not serve this location
    (HTTP 451). Empty: nothing else is asked."""
    um_url: Url = "https://fapi.binance.com"
    """Base URL of the USD-M futures REST API."""
    timeout_s: Seconds = 20.0
    """Longest wait for a connection and for each piece of an answer, in seconds."""
    attempts: Count = 6
    """How often one request is tried in all, before its error is raised."""
    workers: Count = 8
    """How many pages of candles are under way at once."""

    def url_of(self, market: Market) -> str:
        return (self.spot_url if market == "spot" else self.um_url).rstrip("/")


@settings
class ArchiveConfig:
    """Where Binance's bulk archive is, and how it is downloaded."""

    enabled: bool = True
    """Whether the archive is used at all, which it is where it spares requests; false asks REST alone."""
    archive_url: Url = "https://data.binance.vision"
    """Base URL of the archive's files."""
    listing_url: Url = "https://s3-ap-northeast-1.amazonaws.com/data.binance.vision"
    """URL of the storage bucket that lists the archive's files."""
    threads: Annotated[int, Bounds(ge=1, le=64)] = 8
    """Files downloaded at once by all series. Binance states no limit; more than 10 have been seen to be blocked."""
    timeout_s: Seconds = 30.0
    """Longest wait for a connection and for each piece of an answer, in seconds."""
    attempts: Count = 5
    """How often one file is asked for in all, before its error is raised."""
