"""Finished homes under another root, where running their nights again would take most of a minute."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from storage.layout import Home

__all__ = ["copy_home"]


def copy_home(home: Home, root: Path) -> Home:
    """A copy that may be changed. Homes may be moved, all but their MLflow store, which keeps whole paths."""
    shutil.copytree(home.root, root)
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        for table, column in _texts(database):
            database.execute(
                f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)', (str(home.root), str(root))
            )
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        database.execute("VACUUM")
    assert str(home.root).encode() not in (root / "mlflow.db").read_bytes(), "a path leads to the other home"
    return Home(root)


def _texts(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """Every column of text with its table."""
    found = database.execute(
        "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c"
        " WHERE m.type = 'table' AND (c.type LIKE 'VARCHAR%' OR c.type = 'TEXT')"
    )
    return found.fetchall()
