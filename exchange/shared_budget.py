"""SharedBudget in memory that threads share, so that more of them at work need no more of it."""

import threading

__all__ = ["SharedBudget"]


class SharedBudget:
    """`most` of something, such as candles, for all threads together. What alone exceeds it gets all of it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0
        self._waiting = 0
        self._given = threading.Condition()

    def take(self, count: int, *, wait: bool) -> bool:
        """Whether there is room for `count`, which is taken then; sooner or later there is for who waits.

        Only who has taken nothing may wait, or two could wait for each other. Who waits goes first.
        """
        with self._given:
            if wait:
                self._waiting += 1
                try:
                    self._given.wait_for(lambda: self._fits(count))
                finally:
                    self._waiting -= 1
            elif self._waiting or not self._fits(count):
                return False
            self._taken += count
            return True

    def give(self, count: int) -> None:
        """Give back what was taken."""
        with self._given:
            self._taken -= count
            self._given.notify_all()

    def _fits(self, count: int) -> bool:
        return self._taken == 0 or self._taken + count <= self.most
