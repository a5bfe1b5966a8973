"""The lock below the home and the lake; between processes it is tested there."""

import json
import os
import threading

import pytest

from storage.errors import LockedError
from storage.locks import ProcessLock


def test_a_nested_hold_keeps_the_first_purpose_and_frees_at_the_outermost_end(tmp_path):
    lock, other = (ProcessLock(tmp_path / ".lock", guarded="this") for _ in range(2))
    with lock.hold("outer"):
        with lock.hold("inner"):
            pass
        with pytest.raises(
            LockedError, match=rf"expected this to be free, found process {os.getpid()} \(outer\)"
        ):
            other.hold("other").__enter__()
    with other.hold("other"):
        assert json.loads((tmp_path / ".lock.json").read_text())["purpose"] == "other"


def test_another_thread_is_another_writer(tmp_path):
    lock, refused = ProcessLock(tmp_path / ".lock", guarded="this"), []

    def write() -> None:
        try:
            lock.hold("second").__enter__()
        except LockedError as error:
            refused.append(error)

    with lock.hold("first"):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(refused) == 1
