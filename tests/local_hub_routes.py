"""The routes of the stand-in for the Hub, as the clients of huggingface_hub ask for them."""

import base64
import binascii
import hashlib
import json
import re
from urllib.parse import parse_qs, quote

import yaml
from local_hub_requests import Blob, Handler, Repository, RequestError, route

REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".onnx")
DATE = "2024-01-01T00:00:00.000Z"


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
