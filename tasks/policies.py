"""Retries and caching, in one place.

Every task is idempotent by what it writes (content-addressed folders, upserts), so none is cached by Prefect: a
cached path may point to a folder that is gone. HTTP retries live in exchange/ and kronos_model/publish; Prefect
retries only what waits for another process.
"""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

__all__ = ["IDEMPOTENT"]

IDEMPOTENT: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
