"""A real PostgreSQL on loopback, made in a folder of its own and gone with it."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ports import free_ports

__all__ = ["Postgres", "postgres"]


@dataclass(frozen=True)
class Postgres:
    """A running server; every connection needs its password."""

    port: int
    password: str
    programs: Path

    def url(self, driver: str, database: str) -> str:
        """SQLAlchemy's address of a database."""
        return f"postgresql+{driver}://kronos:{self.password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> None:
        self.query("postgres", f"CREATE DATABASE {database}")

    def query(self, database: str, sql: str) -> list[str]:
        """The lines that psql answers, columns separated by `|`."""
        command = [str(self.programs / "psql"), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "kronos", database]
        environment = {**os.environ, "PGPASSWORD": self.password}
        return _run([*command, *where], environment=environment).splitlines()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start one; the test is skipped where PostgreSQL is not installed, or root has nobody to run it as."""
    programs = _programs()
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="kronos-postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        password = secrets.token_hex(12)
        (folder / "password").write_text(password)
        data, log = str(folder / "data"), str(folder / "server.log")
        (port,) = free_ports(1)
        _run(
            [
                str(programs / "initdb"), "-D", data, "-U", "kronos", "-E", "UTF8", "--locale=C", "--no-sync",
                "--auth=scram-sha-256", f"--pwfile={folder / 'password'}",
            ],
            user=user,
        )  # fmt: skip
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -p {port}"
        control = [str(programs / "pg_ctl"), "-D", data, "-w"]
        _run([*control, "-l", log, "-o", options, "start"], user=user)
        try:
            yield Postgres(port, password, programs)
        finally:
            _run([*control, "-m", "immediate", "stop"], user=user)
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    """The folder of initdb and pg_ctl: in PATH, else where Debian keeps the newest version."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not versions:
        pytest.skip("PostgreSQL is not installed on this machine (no initdb); apt-get install postgresql")
    return versions[-1].parent


def _unprivileged() -> str | None:
    """Whom to run it as; None: as ourselves. PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    known = {one.pw_name for one in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in known), None)
    if user is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
    return user


def _run(
    command: Sequence[str], *, user: str | None = None, environment: dict[str, str] | None = None
) -> str:
    with tempfile.TemporaryFile("w+") as output:  # a pipe would be held open by the server that pg_ctl leaves
        done = subprocess.run(
            command, user=user, env=environment, cwd="/", stdout=output, stderr=subprocess.STDOUT, timeout=120
        )
        output.seek(0)
        said = output.read()
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}\n{said}"
    return said
