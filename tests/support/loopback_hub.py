"""A Hugging Face Hub on the loopback, for model repositories: an unmodified huggingface_hub talks to it.

It speaks what publishing and loading need, asks for a token, and fails to order. Weights travel by LFS: while
a LoopbackHub is open, huggingface_hub's Xet transfer is off in this process, by `environment()` in a child.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.constants as hub_constants
import yaml

from tests.support.hub_store import Repository, Stored, git_oid, lfs_file

__all__ = ["Fault", "LoopbackHub", "Request"]

_LFS_SUFFIXES = (".safetensors", ".bin", ".png")
_DATE = "2026-01-01T00:00:00.000Z"


@dataclass(kw_only=True)
class Fault:
    """What happens instead of the next requests that match; all faults are looked at in order."""

    method: str = ""  # any
    path: str = ""  # regular expression, searched in the unquoted path
    skip: int = 0  # let so many matching requests pass first
    status: int | None = None  # answer with this status
    message: str = "ordered by the test"
    headers: Mapping[str, str] = field(default_factory=dict)
    garbage: bool = False  # answer 200 with a page that is not JSON
    cut: bool = False  # drop the connection without an answer
    late: bool = False  # carry the request out first, then answer badly or not at all
    meanwhile: Callable[[], object] | None = None  # run this first (another client, say)
    times: int = 1


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    status: int | None


class LoopbackHub:
    """`with LoopbackHub() as hub: HfApi(endpoint=hub.url, token=hub.token)`."""

    def __init__(
        self, *, user: str = "tester", organisations: tuple[str, ...] = (), role: str = "write"
    ) -> None:
        self.user, self.organisations, self.role = user, organisations, role
        self.token = "hf_loopback_secret"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._xet_was_disabled = hub_constants.HF_HUB_DISABLE_XET
        hub_constants.HF_HUB_DISABLE_XET = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        hub_constants.HF_HUB_DISABLE_XET = self._xet_was_disabled

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that send a child process here."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def add_repository(self, repo_id: str, files: Mapping[str, bytes], *, private: bool = False) -> str:
        """A repository with these files (a new commit where it exists); its head revision."""
        with self.lock:
            repository = self.repositories.setdefault(repo_id, Repository(private=private))
            stored = {path: self.store(path, data) for path, data in files.items()}
            return repository.add({**repository.commits[repository.head], **stored}, "from the test")

    def store(self, path: str, data: bytes) -> Stored:
        """Keep the content as the Hub would keep that path."""
        if not path.endswith(_LFS_SUFFIXES):
            oid = git_oid(data)
            self.blobs[oid] = data
            return Stored(oid, len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return lfs_file(sha256, len(data))

    def content(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """What a client would download."""
        repository = self.repositories[repo_id]
        oid = repository.resolve(revision)
        assert oid is not None
        return self.blobs[repository.commits[oid][path].blob]

    def count(self, method: str, path: str) -> int:
        """Requests seen whose path matches."""
        return sum(one.method == method and re.search(path, one.path) is not None for one in self.requests)

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The first fault left whose turn it is, used up by one."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and re.search(fault.path, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None


class _Reply(Exception):  # noqa: N818
    """Ends the handling of a request with this answer."""

    def __init__(self, status: int, body: object = None, *, data: bytes = b"", **headers: str) -> None:
        self.status = status
        self.data = json.dumps(body).encode() if body is not None else data
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            self.headers.setdefault("Content-Type", "application/json")


def _refusal(status: int, message: str, code: str = "") -> _Reply:
    return _Reply(status, {"error": message}, X_Error_Message=message, X_Error_Code=code)


class _Handler(BaseHTTPRequestHandler):
    """Routes a request to the method of the first pattern that matches."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one segment: two would wait for a delayed acknowledgement

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.hub.fault_for(self.command, self.path_only)
        if fault is not None and fault.meanwhile is not None:
            fault.meanwhile()
        broken = fault is not None and (fault.cut or fault.garbage or fault.status is not None)
        reply = self._route() if not broken or (fault is not None and fault.late) else _Reply(500)
        if fault is not None and fault.status is not None:
            reply = _refusal(fault.status, fault.message)
            reply.headers |= fault.headers
        if fault is not None and fault.garbage:
            reply = _Reply(200, data=b"<html>")
        cut = fault is not None and fault.cut
        self.hub.requests.append(Request(self.command, self.path_only, None if cut else reply.status))
        if cut:
            self.close_connection = True
        else:
            self._send(reply)

    def _send(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.data)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.data)

    def _route(self) -> _Reply:
        with self.hub.lock:
            for methods, pattern, action in _ROUTES:
                found = re.fullmatch(pattern, self.path_only)
                if found and self.command in methods.split():
                    try:
                        return action(self, **found.groupdict())
                    except _Reply as reply:
                        return reply
        return _refusal(404, f"the loopback Hub does not know {self.command} {self.path_only}")

    def _json(self) -> Any:
        return json.loads(self.body or b"{}")

    def _authorised(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {self.hub.token}"

    def _need_token(self) -> None:
        if not self._authorised():
            raise _refusal(401, "Invalid credentials in Authorization header")

    def _repository(self, repo: str, *, write: bool = False) -> Repository:
        found = self.hub.repositories.get(repo)
        if write:
            self._need_token()
        if found is None or (found.private and not self._authorised()):
            raise _refusal(404 if self._authorised() else 401, "Repository not found", "RepoNotFound")
        return found

    def _commit(self, repo: str, revision: str, *, write: bool = False) -> tuple[Repository, str]:
        repository = self._repository(repo, write=write)
        oid = repository.resolve(revision)
        if oid is None:
            raise _refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, oid

    # accounts and repositories

    def whoami(self) -> _Reply:
        if not self._authorised():
            return _refusal(401, "Invalid username or password.")
        organisations = [{"type": "org", "name": name} for name in self.hub.organisations]
        token = {"accessToken": {"displayName": "test", "role": self.hub.role}}
        return _Reply(200, {"type": "user", "name": self.hub.user, "orgs": organisations, "auth": token})

    def validate_yaml(self) -> _Reply:
        content = self._json()["content"]
        found = re.match(r"---\n(.*?)\n---", content, flags=re.DOTALL)
        try:
            yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            return _Reply(400, {"errors": [{"message": str(error)}], "warnings": []})
        return _Reply(200, {"errors": [], "warnings": []})

    def create(self) -> _Reply:
        self._need_token()
        asked = self._json()
        owner = asked.get("organization") or self.hub.user
        if owner not in (self.hub.user, *self.hub.organisations):
            return _refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        repo = f"{owner}/{asked['name']}"
        if repo in self.hub.repositories:
            return _Reply(
                409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}
            )
        self.hub.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        return _Reply(200, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": "0" * 24})

    # reading

    def info(self, repo: str, revision: str = "main") -> _Reply:
        repository, oid = self._commit(repo, revision)
        files = [{"rfilename": path} for path in repository.commits[oid]]
        plain = {
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "createdAt": _DATE,
        }
        described = {
            "id": repo,
            "modelId": repo,
            "sha": oid,
            "private": repository.private,
            "siblings": files,
        }
        return _Reply(200, {"_id": "0" * 24, "lastModified": _DATE, **plain, **described})

    def refs(self, repo: str) -> _Reply:
        repository = self._repository(repo)
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head}
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
            for name, oid in repository.tags.items()
        ]
        return _Reply(200, {"branches": [branch], "tags": tags, "converts": [], "pullRequests": []})

    def tree(self, repo: str, revision: str) -> _Reply:
        repository, oid = self._commit(repo, revision)
        return _Reply(200, [file.entry(path) for path, file in repository.commits[oid].items()])

    def paths_info(self, repo: str, revision: str) -> _Reply:
        repository, oid = self._commit(repo, revision)
        files = repository.commits[oid]
        wanted = parse_qs(self.body.decode()).get("paths", [])
        return _Reply(200, [files[path].entry(path) for path in wanted if path in files])

    def download(self, repo: str, revision: str, path: str) -> _Reply:
        repository, oid = self._commit(repo, revision)
        file = repository.commits[oid].get(path)
        if file is None:
            return _refusal(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{file.blob}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if file.sha256:
            headers |= {"X-Linked-Etag": f'"{file.blob}"', "X-Linked-Size": str(file.size)}
        data = self.hub.blobs[file.blob]
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if asked is None:
            return _Reply(200, data=data, **headers)
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return _Reply(206, data=data[first : last + 1], **headers)

    # writing

    def preupload(self, repo: str, revision: str) -> _Reply:
        repository, oid = self._commit(repo, revision, write=True)
        files = repository.commits[oid]
        answers = []
        for asked in self._json()["files"]:
            path, mode = asked["path"], "lfs" if asked["path"].endswith(_LFS_SUFFIXES) else "regular"
            known = files[path].blob if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return _Reply(200, {"files": answers, "commitOid": oid})

    def commit(self, repo: str, revision: str) -> _Reply:
        repository, oid = self._commit(repo, revision, write=True)
        files, message = dict(repository.commits[oid]), ""
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, oid):
                    return _refusal(412, "A commit has happened since. Please refresh and try again.")
            elif one["key"] == "file":
                files[value["path"]] = self.hub.store(value["path"], base64.b64decode(value["content"]))
            elif one["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return _refusal(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = lfs_file(value["oid"], value["size"])
            elif one["key"] == "deletedFile":
                files.pop(value["path"])
        made = repository.add(files, message)
        url = f"{self.hub.url}/{repo}/commit/{made}"
        return _Reply(200, {"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})

    def tag(self, repo: str, revision: str) -> _Reply:
        repository = self._repository(repo, write=True)
        if self.command == "DELETE":
            return _Reply(200, {}) if repository.tags.pop(revision, None) else _refusal(404, "no such tag")
        repository, oid = self._commit(repo, revision, write=True)
        name = self._json()["tag"]
        if name in repository.tags:
            return _refusal(409, "Tag reference exists already")
        repository.tags[name] = oid
        return _Reply(200, {})

    def lfs_batch(self, repo: str) -> _Reply:
        self._repository(repo, write=True)
        answers = []
        for asked in self._json()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"], "authenticated": True}
            if asked["oid"] not in self.hub.blobs:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/_lfs/{asked['oid']}"},
                    "verify": {"href": f"{self.hub.url}/_lfs_verify"},
                }
            answers.append(answer)
        return _Reply(200, {"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str) -> _Reply:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return _refusal(400, "the content has another sha256")
        self.hub.blobs[oid] = self.body
        return _Reply(200)

    def lfs_verify(self) -> _Reply:
        return _Reply(200, {}) if self._json()["oid"] in self.hub.blobs else _refusal(404, "not uploaded")


_REPO, _REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
_API = f"/api/models/{_REPO}"
_ROUTES: list[tuple[str, str, Callable[..., _Reply]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", _API, _Handler.info),
    ("GET", f"{_API}/revision/{_REVISION}", _Handler.info),
    ("GET", f"{_API}/refs", _Handler.refs),
    ("GET", f"{_API}/tree/{_REVISION}", _Handler.tree),
    ("POST", f"{_API}/paths-info/{_REVISION}", _Handler.paths_info),
    ("POST", f"{_API}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", f"{_API}/commit/{_REVISION}", _Handler.commit),
    ("POST DELETE", f"{_API}/tag/{_REVISION}", _Handler.tag),
    ("POST", f"/{_REPO}[.]git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_upload),
    ("POST", "/_lfs_verify", _Handler.lfs_verify),
    ("GET HEAD", f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler.download),
]
