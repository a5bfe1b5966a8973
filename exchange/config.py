"""Where the exchange is and how it is asked."""

from typing import Annotated

from kronos_model.settings import Count, Seconds, Written, settings
from storage.schema import Market

__all__ = ["ExchangeConfig", "Url"]

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
