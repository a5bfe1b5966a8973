"""What can go wrong with bytes at rest, each as one sentence for the user."""

__all__ = ["CandleError", "DatasetError", "LakeError", "LockedError", "StorageError"]


class StorageError(Exception):
    """The base of all: something could not be written, read or trusted."""


class CandleError(StorageError):
    """Candles, a series key or an interval that break a rule."""


class LakeError(StorageError):
    """A file of the lake or of its ledger that cannot be read."""


class LockedError(StorageError):
    """Somebody else is writing here."""


class DatasetError(StorageError):
    """A dataset that cannot be built or opened."""
