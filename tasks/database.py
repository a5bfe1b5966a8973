"""Addresses of databases: what may be shown of one, and how a fresh PostgreSQL is opened by one process at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import StorageError

__all__ = ["is_database", "one_at_a_time", "shown", "without_login"]

_DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}  # what MLflow knows
_LOGIN = re.compile(r"(?<=://)([^:/@]*):([^@]*)@")
_SECRET = re.compile(r"(?<=[?&])((?:ssl)?password)=[^&]*")
_TURN = 0x6B726F6E6F73  # any number, the same in every process: "kronos"


def shown(address: str) -> str:
    """The address as it may be printed: *** for its passwords."""
    return _SECRET.sub(r"\1=***", _LOGIN.sub(r"\1:***@", address))


def without_login(address: str) -> str:
    """A server's address as a link may have it: a browser asks for user and password itself."""
    return _LOGIN.sub("", address)


def is_database(address: str) -> bool:
    """Whether it is a database's that this process opens itself, and not a server's."""
    return _dialect(address) in _DATABASES


@contextmanager
def one_at_a_time(address: str) -> Iterator[None]:
    """Keep other processes, of any machine, out of this block while it opens a PostgreSQL; others are let through.

    The lock is the database's own, and ends with its connection: one that is killed leaves none. It lasts as long as
    a transaction, so that it also holds behind a pooler that lends its connections by transaction.
    """
    if _dialect(address) != "postgresql":
        yield
        return
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(address, poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise StorageError(
            f"expected a driver for {shown(address)}, found no module {error.name}; install the extra `postgres` and "
            "begin the address with postgresql+psycopg://"
        ) from error
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '10min'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:turn)"), {"turn": _TURN})
        yield


def _dialect(address: str) -> str:
    return address.partition(":")[0].partition("+")[0]
