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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from storage.errors import LockedError, StorageError
from storage.remote_bucket import Bucket, Found, MovedError

__all__ = ["BEAT_S", "TTL_S", "Lease", "LostLeaseError", "Taken"]

TTL_S = 90.0
BEAT_S = 20.0

_KEY = "lease.json"
_TRIES = 5


class LostLeaseError(LockedError):
    """Another machine has taken the home over; what this one makes from here on must not count."""


@dataclass(frozen=True, slots=True)
class Taken:
    """How a lease was come by."""

    died: bool
    """Whether whoever had it before never gave it back."""
    run: str
    """The flow run of that one, if it had one."""


class Lease:
    """The lease of one working copy, whose processes share it."""

    def __init__(self, bucket: Bucket, owner: str, *, purpose: str, run: str = "") -> None:
        self._bucket, self._owner = bucket, owner
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._told = {"pid": os.getpid(), "machine": socket.gethostname(), "purpose": purpose, "since": since}
        self._run = run

    def take(self) -> Taken:
        """Take it where it is free, expired or this working copy's own; LockedError that names the holder else."""
        for _ in range(_TRIES):
            found = self._bucket.get(_KEY)
            holder = _holder(found)
            if found and holder and holder["owner"] != self._owner and not self._expired(found):
                raise LockedError(
                    f"expected the home {self._bucket.url} to be free, found {_named(holder)}; wait until it ends or "
                    "stop it"
                )
            if found is None:
                self._check_conditions()
            if self._sign(found):
                return Taken(bool(holder), str(holder.get("run", "")))
        raise LockedError(
            f"expected the home {self._bucket.url} to be free, found others taking it at this very moment; run again"
        )

    def renew(self) -> None:
        """Say that this working copy still writes. Raises LostLeaseError where another one does by now."""
        for _ in range(_TRIES):
            found = self._bucket.get(_KEY)
            holder = _holder(found)
            if holder.get("owner") != self._owner:
                raise LostLeaseError(
                    f"expected to hold the home {self._bucket.url}, found "
                    f"{_named(holder) if holder else 'it given back'} after this machine was silent for more than "
                    f"{TTL_S:.0f} s; run the same again once that has ended"
                )
            if self._sign(found):
                return

    def give_back(self) -> None:
        """Free it, where it is still this working copy's."""
        found = self._bucket.get(_KEY)
        if found and _holder(found).get("owner") == self._owner:
            try:
                self._bucket.put(_KEY, b"{}\n", expect=found.etag)
            except MovedError:  # taken over in this very moment, which is what giving it back is for
                return

    def holder(self) -> str:
        """Who has it, in words; empty where nobody does."""
        found = self._bucket.get(_KEY)
        holder = _holder(found)
        return _named(holder) if found and holder and not self._expired(found) else ""

    def _sign(self, found: Found | None) -> bool:
        """Put the own name where still nothing but `found` is; whether that went well."""
        # A version is a digest of the content: the number makes each signature another one.
        told = {**self._told, "owner": self._owner, "run": self._run, "number": uuid.uuid4().hex}
        content = json.dumps(told).encode()
        try:
            self._bucket.put(_KEY, content, expect=found.etag if found else None)
        except MovedError:
            now = self._bucket.get(_KEY)  # an answer that got lost on its way: the second try found the first
            return now is not None and now.content == content
        return True

    def _check_conditions(self) -> None:
        """Once in a home's life: whether its store refuses what it should. Raises StorageError where it does not."""
        try:
            self._bucket.put(_KEY, b"{}\n", expect='"of nothing that was ever there"')
        except MovedError:
            return
        raise StorageError(
            f"expected a store that obeys If-Match and If-None-Match for {self._bucket.url}, found that it ignores "
            "them; without them two machines may write at once, so install a newer one or choose another"
        )

    def _expired(self, found: Found) -> bool:
        return self._bucket.now() - found.modified > timedelta(seconds=TTL_S)


def _holder(found: Found | None) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(found.content) if found else {}
    return told


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['machine']} ({holder['purpose']}) at work since {holder['since']}"
