"""What lies below a folder, so that a test sees whether anything there was touched."""

import hashlib
from pathlib import Path

__all__ = ["snapshot"]


def snapshot(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mtime, size and digest of every file and folder, `root` itself among them, by its relative path."""
    return {str(path.relative_to(root)): _facts(path) for path in (root, *sorted(root.rglob("*")))}


def _facts(path: Path) -> tuple[int, int, str]:
    facts = path.lstat()
    content = path.read_bytes() if path.is_file() else b""
    return facts.st_mtime_ns, facts.st_size, hashlib.sha256(content).hexdigest()
