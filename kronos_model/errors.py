"""What goes wrong in the model, as one sentence for its user: expected, found, what to do."""

__all__ = ["DataError", "LostProcess", "MismatchedPair", "ModelError", "NonFiniteLoss", "UnreachableModel"]


class ModelError(Exception):
    """Base of everything this package raises for its user; a bad setting is a ValueError instead."""


class MismatchedPair(ModelError):  # noqa: N818
    """A tokenizer and a predictor that were not made for each other."""


class UnreachableModel(ModelError):  # noqa: N818
    """The Hub did not hand out a repository at its revision."""


class NonFiniteLoss(ModelError):  # noqa: N818
    """The loss became NaN or infinite; no step was taken."""


class LostProcess(ModelError):  # noqa: N818
    """Another process of the same training has ended."""


class DataError(ModelError):
    """A dataset or its windows are not what the model needs."""
