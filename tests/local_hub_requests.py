"""The stand-in for the Hub: what a repository holds, and the handler that finds a request's route and answers it."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from local_hub import LocalHub

ROUTES = []


def route(methods: str, pattern: str):
    """Register a handler for requests of these methods whose path matches; named groups become its arguments."""

    def register(handler):
        ROUTES.append((methods.split(), re.compile(pattern + "$"), handler))
        return handler

    return register


class RequestError(Exception):
    """Answer with `status`; the client reads the headers X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **headers} | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class Blob:
    """A file's content: `oid` is git's SHA-1, or the SHA-256 where the file is kept by LFS."""

    oid: str
    size: int
    lfs: bool
    path: Path


@dataclass
class Repository:
    repo_id: str
    kind: str  # models, datasets or spaces
    private: bool
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)  # commit -> path -> blob
    variables: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        content = json.dumps([len(self.commits), sorted((path, blob.oid) for path, blob in files.items())])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise RequestError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, Blob]:
        return self.commits[self.resolve(revision)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: "LocalHub"

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body = self.read_body()
        line = f"{self.command} {parts.path}"
        self.hub.requests.append(line)
        try:
            self.inject_fault(line)
            for methods, pattern, handler in ROUTES:
                if self.command in methods and (match := pattern.match(parts.path)):
                    handler(self, **{name: value and unquote(value) for name, value in match.groupdict().items()})
                    return
            self.hub.unhandled.append(line)
            raise RequestError(404, f"no route for {line}")
        except RequestError as error:
            self.answer(error.status, {"error": str(error)}, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def inject_fault(self, line: str) -> None:
        for fault in self.hub.faults:
            pattern, status, times = fault
            if times and pattern.search(line):
                fault[2] -= 1
                raise RequestError(status, "injected")

    def log_message(self, *args) -> None:
        pass

    def answer(self, status: int, body=None, headers=()) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **dict(headers)}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer_file(self, path: Path, headers: dict) -> None:
        data = path.read_bytes()
        start, end, status = 0, len(data) - 1, 200
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = match.groups()
            start, end = (
                (int(first), min(int(last or end), end)) if first else (max(len(data) - int(last), 0), len(data) - 1)
            )
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}
        self.send_response(status)
        for name, value in {"Accept-Ranges": "bytes", "Content-Length": end - start + 1, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[start : end + 1])

    def user(self) -> tuple[str, str] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in self.hub.tokens:
            raise RequestError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def check_writer(self, namespace: str) -> None:
        user = self.user()
        if user is None:
            raise RequestError(401, "Invalid username or password.")
        if user != (namespace, "write"):
            raise RequestError(403, "Forbidden: you don't have the rights to write in this namespace")

    def repository(self, kind: str | None, repo_id: str, write: bool = False) -> Repository:
        user, repo = self.user(), self.hub.repositories.get((kind or "models", repo_id))
        namespace = repo_id.split("/")[0]
        if repo is None or (repo.private and (not user or user[0] != namespace)):
            # Only over https does the client take a bare 401 for a missing repository: the code says it here.
            raise RequestError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self.check_writer(namespace)
        return repo

    def web_url(self, repo: Repository) -> str:
        return f"{self.hub.url}/{'' if repo.kind == 'models' else repo.kind + '/'}{repo.repo_id}"
