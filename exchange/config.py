"""Where the exchange and its archive are, and how they are asked."""

from dataclasses import dataclass

from storage.schema import Market

__all__ = ["ArchiveConfig", "ExchangeConfig"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveConfig:
    """Where Binance's bulk archive is, and how it is downloaded."""

    enabled: bool = True
    """Whether the archive is used at all, which it is where it spares requests; false asks REST alone."""
    archive_url: str = "https://data.binance.vision"
    """Base URL of the archive's files."""
    listing_url: str = "https://s3-ap-northeast-1.amazonaws.com/data.binance.vision"
    """URL of the storage bucket that lists the archive's files."""
    threads: int = 8
    """Files downloaded at once by all series. Binance states no limit; more than 10 have been seen to be blocked."""
    timeout_s: float = 30.0
    """Longest wait for a connection and for each piece of an answer, in seconds."""
    attempts: int = 5
    """How often one file is asked for in all, before its error is raised."""

    def __post_init__(self) -> None:
        for name, url in (("archive_url", self.archive_url), ("listing_url", self.listing_url)):
            if not url.startswith(("http://", "https://")):
                raise ValueError(
                    f"Expected archive.{name} to be a URL such as https://data.binance.vision, "
                    f"found {url!r}; write the scheme and the host."
                )
        if not 1 <= self.threads <= 64:
            raise ValueError(
                f"Expected archive.threads from 1 to 64, found {self.threads}; 8 is a good value."
            )
        if not self.timeout_s > 0:
            raise ValueError(
                f"Expected archive.timeout_s above 0 seconds, found {self.timeout_s}; 30 is a good value."
            )
        if self.attempts < 1:
            raise ValueError(
                f"Expected archive.attempts of at least 1, found {self.attempts}; 5 is a good value."
            )
