"""A loopback stand-in for the Hugging Face Hub: repositories in memory, blobs on disk, real clients unmodified.

    with LocalHub(folder) as hub:
        subprocess.run([...], env=os.environ | hub.environment(token="hf_alice"))

Serves models, datasets and Spaces for huggingface_hub with HF_HUB_DISABLE_XET=1: creation, uploads through LFS,
commits, tags, downloads and ranges. A second origin, on another port, serves blobs, so that the client follows
redirects and leaves its token behind as on the real Hub. What no route knows is answered with 404 and kept in
`unhandled`.
"""

import base64
import binascii
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".onnx")
ROUTES = []
DATE = "2024-01-01T00:00:00.000Z"


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


class LocalHub:
    """The server, running while the `with` block does.

    Attributes:
        url: for HF_ENDPOINT.
        requests: "METHOD /path" of every request, in order.
        unhandled: those that no route knows.
        repositories: (kind, USER/NAME) -> repository.
    """

    # token -> (user, role)
    tokens = {"hf_alice": ("alice", "write"), "hf_alice_read": ("alice", "read"), "hf_bob": ("bob", "write")}  # noqa: RUF012

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        self.unhandled: list[str] = []
        self.faults: list[list] = []
        self.lock = threading.Lock()
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.blob_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def __enter__(self) -> "LocalHub":
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def environment(self, home: Path, token: str | None = "hf_alice") -> dict[str, str]:
        """Variables for a client process that has its caches in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_TOKEN": token or "",
        }

    def fail_next(self, pattern: str, status: int, times: int = 1) -> None:
        """The next `times` requests whose "METHOD /path" matches are answered with `status`."""
        self.faults.append([re.compile(pattern), status, times])

    def put(self, kind: str, repo_id: str, folder: Path, private: bool = False) -> Repository:
        """Make a repository of a folder's files, as if they had been pushed."""
        repo = self.repositories[kind, repo_id] = Repository(repo_id, kind, private)
        files = [path for path in folder.rglob("*") if path.is_file()]
        repo.commit("main", {path.relative_to(folder).as_posix(): self.store(path.read_bytes()) for path in files})
        return repo

    def names(self, kind: str, repo_id: str, revision: str = "main") -> list[str]:
        """The files of a repository, but for the .gitattributes that the Hub itself adds."""
        return sorted(set(self.repositories[kind, repo_id].files(revision)) - {".gitattributes"})

    def read(self, kind: str, repo_id: str, path: str) -> bytes:
        return self.repositories[kind, repo_id].files()[path].path.read_bytes()

    def store(self, content: bytes) -> Blob:
        """Keep a small file as git does."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.folder / oid).write_bytes(content)
        return Blob(oid, len(content), False, self.folder / oid)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LocalHub

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


# Account and repositories


@route("GET", r"/api/agent-harnesses")
def agent_harnesses(request: Handler) -> None:
    """What the `hf` command asks for at its start."""
    request.answer(200, {"standardEnvVars": [], "harnesses": {}})


@route("GET", r"/api/whoami-v2")
def whoami(request: Handler) -> None:
    user = request.user()
    if user is None:
        raise RequestError(401, "Invalid username or password.")
    token = {"displayName": "test", "role": user[1]}
    request.answer(200, {"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": token}})


@route("POST", r"/api/repos/create")
def create_repository(request: Handler) -> None:
    wanted, user = json.loads(request.body), request.user()
    if user is None:
        raise RequestError(401, "Invalid username or password.")
    namespace, kind = wanted.get("organization") or user[0], (wanted.get("type") or "model") + "s"
    request.check_writer(namespace)
    repo_id, hub = f"{namespace}/{wanted['name']}", request.hub
    with hub.lock:
        if repo := hub.repositories.get((kind, repo_id)):
            # With exist_ok the client takes the address from this answer.
            request.answer(409, {"error": "You already created this repo", "url": request.web_url(repo)})
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repo = hub.repositories[kind, repo_id] = Repository(repo_id, kind, private)
        repo.commit("main", {".gitattributes": hub.store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")})
    request.answer(200, {"url": request.web_url(repo), "name": repo_id, "id": repo_id})


@route("POST", r"/api/validate-yaml")
def validate_yaml(request: Handler) -> None:
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", json.loads(request.body)["content"], re.S)
    try:
        errors = [] if match and isinstance(yaml.safe_load(match.group(1)), dict) else [{"message": "no metadata"}]
    except yaml.YAMLError as error:
        errors = [{"message": str(error)}]
    request.answer(400 if errors else 200, {"errors": errors, "warnings": []})


@route("POST", rf"/api/{REPO}/tag/(?P<revision>[^/]+)")
def create_tag(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    repo = request.repository(kind, repo_id, write=True)
    repo.refs[json.loads(request.body)["tag"]] = repo.resolve(revision)
    request.answer(200, {})


@route("GET", rf"/api/{REPO}/variables")
def list_variables(request: Handler, kind: str, repo_id: str) -> None:
    variables = request.repository(kind, repo_id).variables
    request.answer(200, {key: {"key": key, "value": value, "updatedAt": DATE} for key, value in variables.items()})


@route("DELETE", rf"/api/{REPO}/variables")
def delete_variable(request: Handler, kind: str, repo_id: str) -> None:
    del request.repository(kind, repo_id, write=True).variables[json.loads(request.body)["key"]]
    request.answer(200, {})


@route("POST", rf"/api/{REPO}/variables")
def set_variable(request: Handler, kind: str, repo_id: str) -> None:
    wanted = json.loads(request.body)
    request.repository(kind, repo_id, write=True).variables[wanted["key"]] = wanted["value"]
    request.answer(200, {})


# Reading


@route("GET", rf"/api/{REPO}(?:/revision/(?P<revision>[^/]+))?")
def repository_info(request: Handler, kind: str, repo_id: str, revision: str | None = None) -> None:
    repo = request.repository(kind, repo_id)
    sha = repo.resolve(revision or "main")
    files = [{"rfilename": path} for path in sorted(repo.commits[sha])]
    info = {"id": repo_id, "sha": sha, "lastModified": DATE, "private": repo.private, "gated": False, "tags": []}
    request.answer(200, info | {"siblings": files, "downloads": 0, "likes": 0})


def file_entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size}
    return entry | ({"lfs": {"oid": blob.oid, "size": blob.size, "pointerSize": 130}} if blob.lfs else {})


@route("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?")
def list_tree(request: Handler, kind: str, repo_id: str, revision: str, path: str | None = None) -> None:
    files = request.repository(kind, repo_id).files(revision)
    prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
    recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    entries = {}
    for name, blob in sorted(files.items()):
        if name.startswith(prefix):
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = prefix + "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                entries[name] = file_entry(name, blob)
    if prefix and not entries:
        raise RequestError(404, f"{path} does not exist", "EntryNotFound")
    request.answer(200, list(entries.values()))


@route("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    files = request.repository(kind, repo_id).files(revision)
    wanted = [path.strip("/") for path in parse_qs(request.body.decode()).get("paths", [])]
    request.answer(200, [file_entry(path, files[path]) for path in wanted if path in files])


@route("GET HEAD", rf"{FILE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: Handler, kind: str | None, repo_id: str, revision: str, path: str) -> None:
    repo = request.repository(kind, repo_id)
    sha = repo.resolve(revision)
    blob = repo.commits[sha].get(path)
    if blob is None:
        raise RequestError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
    headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.oid}"', "Content-Disposition": f"inline; filename={quote(path)}"}
    if not blob.lfs:
        request.answer_file(blob.path, headers)
        return
    linked = {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": blob.size}
    request.answer(302, None, headers | linked | {"Location": f"{request.hub.blob_url}/blobs/{blob.oid}"})


@route("GET HEAD PUT", r"/blobs/(?P<oid>[0-9a-f]{64})")
def blob_storage(request: Handler, oid: str) -> None:
    if request.headers.get("Authorization"):
        raise RequestError(400, "a token of the Hub was sent to another origin")
    path = request.hub.folder / oid
    if request.command == "PUT":
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise RequestError(400, "content does not match its digest")
        path.write_bytes(request.body)
        request.answer(200)
    elif path.is_file():
        request.answer_file(path, {"ETag": f'"{oid}"'})
    else:
        raise RequestError(404, "no such blob")


# Writing


@route("POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    repo = request.repository(kind, repo_id, write=True)
    files, answers = repo.files(revision), []
    for wanted in json.loads(request.body)["files"]:
        path = wanted["path"]
        large = path.endswith(LFS_SUFFIXES) or wanted["size"] > 10 * 2**20
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": files[path].oid} if path in files else {}))
    request.answer(200, {"files": answers})


@route("POST", rf"{FILE}\.git/info/lfs/objects/batch")
def lfs_batch(request: Handler, kind: str | None, repo_id: str) -> None:
    repo = request.repository(kind, repo_id, write=True)
    objects = []
    for wanted in json.loads(request.body)["objects"]:
        upload = {"href": f"{request.hub.blob_url}/blobs/{wanted['oid']}", "header": {}}
        verify = {"href": f"{request.web_url(repo)}.git/info/lfs/objects/verify", "header": {}}
        kept = (request.hub.folder / wanted["oid"]).is_file()
        objects.append(wanted | ({} if kept else {"actions": {"upload": upload, "verify": verify}}))
    request.answer(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})


@route("POST", rf"{FILE}\.git/info/lfs/objects/verify")
def lfs_verify(request: Handler, kind: str | None, repo_id: str) -> None:
    request.repository(kind, repo_id, write=True)
    if not (request.hub.folder / json.loads(request.body)["oid"]).is_file():
        raise RequestError(404, "LFS object not found")
    request.answer(200, {})


@route("POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)")
def commit(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    repo, hub = request.repository(kind, repo_id, write=True), request.hub
    with hub.lock:
        files = dict(repo.files(revision))
        for line in request.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                try:
                    files[value["path"]] = hub.store(base64.b64decode(value["content"], validate=True))
                except binascii.Error:
                    raise RequestError(400, "content is not base64") from None
            elif operation["key"] == "lfsFile":
                blob = hub.folder / value["oid"]
                if not blob.is_file():
                    raise RequestError(400, f"LFS object not found: {value['oid']}")
                files[value["path"]] = Blob(value["oid"], blob.stat().st_size, True, blob)
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, files)
    request.answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{request.web_url(repo)}/commit/{sha}"})
