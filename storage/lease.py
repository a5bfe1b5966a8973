"""Who may write to a home on object storage: one machine at a time, by an object that it renews.

Every step is a conditional put, so of two that come at once one is told no. A lease that was not renewed for `TTL_S`,
by the store's clock, belongs to a dead machine and may be taken over. The object stays when it is given back: a delete
cannot be made conditional everywhere.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from storage.errors import LockedError, StorageError
from storage.object_store import Found, MovedError, ObjectStore

__all__ = ["BEAT_S", "TTL_S", "Lease", "LostLeaseError"]

TTL_S = 90.0
BEAT_S = 20.0

_KEY = "lease.json"
_FREE = b"{}\n"


class LostLeaseError(LockedError):
    """Another machine has taken the home over; what this one makes from here on must not count."""


class Lease:
    """The lease of one working copy, whose processes and threads share it."""

    def __init__(self, store: ObjectStore, owner: str) -> None:
        self._store, self._owner = store, owner

    def take(self, purpose: str, run: str = "") -> str | None:
        """Take it where it is free, expired or this working copy's own; LockedError that names the holder else.

        Returns the flow run ("" where it had none) of a holder that never gave it back, else None.
        """
        found, holder = self._found()
        if found is None:
            self._check_conditions()
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        me = {"pid": os.getpid(), "machine": socket.gethostname(), "purpose": purpose, "since": since}
        may = found is None or not holder or holder["owner"] == self._owner or self._expired(found)
        if may and self._sign(found, {**me, "owner": self._owner, "run": run}):
            return str(holder.get("run", "")) if holder else None
        who = "another machine taking it at this very moment" if may else _named(holder)
        raise LockedError(
            f"expected the home {self._store.url} to be free, found {who}; wait until it ends or stop it"
        )

    def renew(self) -> None:
        """Say that this working copy still writes. Raises LostLeaseError where another one does by now."""
        if not self._sign(*self._own()):
            self._own()  # another process of this machine has signed, which is as good

    def give_back(self) -> None:
        """Free it, where it is still this working copy's."""
        with suppress(LostLeaseError):  # taken over, which is what giving it back is for
            self._sign(self._own()[0], None)

    def holder(self) -> str:
        """Who has it, in words; empty where nobody does."""
        found, holder = self._found()
        return _named(holder) if found and holder and not self._expired(found) else ""

    def _found(self) -> tuple[Found | None, dict[str, Any]]:
        """The object, and who has signed it."""
        found = self._store.get(_KEY)
        return found, json.loads(found.content) if found else {}

    def _own(self) -> tuple[Found, dict[str, Any]]:
        found, holder = self._found()
        if found and holder.get("owner") == self._owner:
            return found, holder
        raise LostLeaseError(
            f"expected to hold the home {self._store.url}, found {_named(holder) if holder else 'it given back'} "
            f"after this machine was silent for more than {TTL_S:.0f} s; run the same again once that has ended"
        )

    def _sign(self, found: Found | None, holder: dict[str, Any] | None) -> bool:
        """Put who holds it, None for nobody, where still nothing but `found` is; whether that went well."""
        # A version is a digest of the content: the number makes each signature another one.
        content = json.dumps({**holder, "number": uuid.uuid4().hex}).encode() if holder else _FREE
        with suppress(MovedError):
            self._store.put(_KEY, content, expect=found and found.etag)
            return True
        return False

    def _check_conditions(self) -> None:
        """Once in a home's life: whether its store refuses what it should. Raises StorageError where it does not."""
        with suppress(MovedError):
            self._store.put(_KEY, _FREE, expect='"of nothing that was ever there"')
            raise StorageError(
                f"expected a store that obeys If-Match and If-None-Match for {self._store.url}, found that it ignores "
                "them; without them two machines may write at once, so install a newer one or choose another"
            )

    def _expired(self, found: Found) -> bool:
        return self._store.now() - found.modified > timedelta(seconds=TTL_S)


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['machine']} ({holder['purpose']}) at work since {holder['since']}"
