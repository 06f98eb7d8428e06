"""A loopback stand-in for the Hugging Face Hub: repositories in memory, blobs on disk, real clients unmodified.

    with LocalHub(folder) as hub:
        subprocess.run([...], env=os.environ | hub.environment(token="hf_alice"))

Serves models, datasets and Spaces for huggingface_hub with HF_HUB_DISABLE_XET=1: creation, uploads through LFS,
commits, tags, downloads and ranges. A second origin, on another port, serves blobs, so that the client follows
redirects and leaves its token behind as on the real Hub. What no route knows is answered with 404 and kept in
`unhandled`.
"""

import hashlib
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import local_hub_routes  # noqa: F401 (registers them)
from local_hub_requests import Blob, Handler, Repository


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

    def clear(self) -> None:
        """Forget all repositories, requests, faults and blobs."""
        for content in (self.repositories, self.requests, self.unhandled, self.faults):
            content.clear()
        for blob in self.folder.iterdir():  # a client does not upload again what is there
            blob.unlink()

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
