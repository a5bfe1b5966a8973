"""What the service says when it cannot answer: a status and one sentence."""

from __future__ import annotations

__all__ = ["Refused"]


class Refused(Exception):  # noqa: N818  # an answer, not a defect
    """An answer other than 200; `retry_s` becomes the Retry-After header."""

    def __init__(self, status: int, sentence: str, *, retry_s: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_s = retry_s

    @property
    def headers(self) -> dict[str, str]:
        """What belongs to the status."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return headers | ({"Retry-After": str(self.retry_s)} if self.retry_s is not None else {})
