"""`kronos` on a machine that is not well: a disk that fills up, a clock that is wrong.

Told by DRILL_DISK_FULL_AFTER (so many changes of files are still kept) and DRILL_CLOCK_AHEAD_S.
"""

import errno
import os
import time

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process, as `kronos` does."""
    if left := int(os.environ.get("DRILL_DISK_FULL_AFTER", "0")):
        _fill_disk(left)
    if ahead := float(os.environ.get("DRILL_CLOCK_AHEAD_S", "0")):
        _set_clock(ahead)
    from flows.cli.program import main as kronos

    kronos()


def _fill_disk(left: int) -> None:
    """From then on nothing reaches the disk: every file and folder of ours is flushed before it takes its name."""
    flush = os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    os.fsync = full  # type: ignore[assignment]


def _set_clock(ahead: float) -> None:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + ahead
    time.time_ns = lambda: nanoseconds() + int(ahead * 1e9)


if __name__ == "__main__":
    main()
