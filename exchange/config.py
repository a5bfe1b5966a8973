"""Where the exchange is and how it is asked."""

from dataclasses import dataclass

from storage.schema import Market

__all__ = ["ExchangeConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeConfig:
    """Where Binance is, and how patient to be with it."""

    spot_url: str = "https://api.binance.com"
    """Base URL of the spot REST API."""
    spot_fallback_url: str = "https://data-api.binance.vision"
    """Base URL of Binance's mirror for spot market data, asked where spot_url does not serve this location
    (HTTP 451). Empty: nothing else is asked."""
    um_url: str = "https://fapi.binance.com"
    """Base URL of the USD-M futures REST API."""
    timeout_s: float = 20.0
    """Longest wait for a connection and for each piece of an answer, in seconds."""
    attempts: int = 6
    """How often one request is tried in all, before its error is raised."""
    workers: int = 8
    """How many pages of candles are under way at once."""

    def __post_init__(self) -> None:
        urls = {name: getattr(self, name) for name in ("spot_url", "um_url", "spot_fallback_url")}
        for name, url in urls.items():
            if name == "spot_fallback_url" and not url:
                continue
            if not url.startswith(("http://", "https://")) or url.rstrip("/").endswith(":"):
                raise ValueError(
                    f"Expected exchange.{name} to be a URL such as https://api.binance.com, found {url!r}; "
                    "write the scheme and the host."
                )
        if not self.timeout_s > 0:
            raise ValueError(
                f"Expected exchange.timeout_s above 0 seconds, found {self.timeout_s}; 20 is a good value."
            )
        for name, value, good in (("attempts", self.attempts, 6), ("workers", self.workers, 8)):
            if value < 1:
                raise ValueError(
                    f"Expected exchange.{name} of at least 1, found {value}; {good} is a good value."
                )

    def url_of(self, market: Market) -> str:
        """Base URL of a market."""
        return (self.spot_url if market == "spot" else self.um_url).rstrip("/")
