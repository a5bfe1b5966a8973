"""Files appear whole or not at all, whatever fails."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from storage.atomic import atomic_directory, atomic_path, remove_leftovers, write_json
from storage.errors import StorageError


def failing(number: int):
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def write_half(path: Path, end: type[BaseException]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise end


def test_a_file_is_written_with_its_folder_and_nothing_is_left(tmp_path):
    path = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_is_on_the_disk_with_all_it_holds_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut after the rename must not leave empty files under a name that says they are whole."""
    synced: list[str] = []
    renamed: list[int] = []
    fsync, rename = os.fsync, os.rename

    def note(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        root = next(iter(tmp_path.iterdir()))
        names = {path.stat().st_ino: str(path.relative_to(root)) for path in root.rglob("*")}
        synced.append({root.stat().st_ino: ".", tmp_path.stat().st_ino: ".."}.get(inode) or names[inode])
        fsync(descriptor)

    def move(*arguments: object) -> None:
        renamed.append(len(synced))
        rename(*arguments)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", move)
    with atomic_directory(tmp_path / "model") as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        for name in ("config.json", "deep/model.safetensors", "deep/er/weights"):
            (folder / name).write_text(name)
    whole = {".", "config.json", "deep", "deep/er", "deep/er/weights", "deep/model.safetensors"}
    assert (set(synced[: renamed[0]]), len(renamed)) == (whole, 1)
    assert synced[renamed[0] :] == [".."], "and then its name"


def test_a_failing_block_leaves_the_old_file_and_no_temp(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "the file system is read-only; choose another home"),
        (errno.EACCES, "this user may not write there; grant it write permission"),
    ],
)
def test_a_failing_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch, step, number, remedy):
    path = tmp_path / "file.txt"
    path.write_text("old")
    monkeypatch.setattr(os, step, failing(number))
    with (
        pytest.raises(StorageError, match=rf"^expected to write {path}, found that {remedy}"),
        atomic_path(path) as temp,
    ):
        temp.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_while_the_block_writes_is_the_same_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", failing(errno.ENOSPC))
    with pytest.raises(StorageError, match="the disk is full"):
        write_json(tmp_path / "a.json", {})


def test_other_failures_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_json(tmp_path / "a.json", {})


def test_the_temp_path_keeps_the_suffix_that_numpy_would_add(tmp_path):
    with atomic_path(tmp_path / "a.npy") as temporary:
        np.save(temporary, np.arange(3))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]


def test_what_is_written_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (steps.append("replace"), replace(old, new)))
    write_json(tmp_path / "a.json", [1])
    assert steps == ["fsync", "replace", "fsync"]


def test_json_keeps_order_and_letters_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1.5, "a": "币"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "b": 1.5,\n  "a": "币"\n}\n'
    with pytest.raises(StorageError, match="replace it by null"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").exists()


def test_a_directory_appears_whole(tmp_path):
    path = tmp_path / "data" / "set"
    with atomic_directory(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "sub" / "a.txt").read_text() == "a"
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_directory_leaves_nothing(tmp_path):
    def fill() -> None:
        with atomic_directory(tmp_path / "set") as folder:
            (folder / "a.txt").write_text("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_is_not_replaced(tmp_path):
    with atomic_directory(tmp_path / "set") as folder:
        (folder / "a.txt").write_text("a")
    with (
        pytest.raises(StorageError, match=r"found one; delete it"),
        atomic_directory(tmp_path / "set") as folder,
    ):
        (folder / "a.txt").write_text("b")
    assert (tmp_path / "set" / "a.txt").read_text() == "a"
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as if killed
        with pytest.raises(SystemExit):
            write_half(tmp_path / "a.parquet", SystemExit)
    (tmp_path / ".b.1-2.tmp").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / "a.parquet").touch()
    assert len(list(tmp_path.iterdir())) == 4
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.parquet"]
