"""A hub on 127.0.0.1: the part of huggingface.co that huggingface_hub and `datasets` use."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import HfFileSystem, constants

FIRST = "1" * 40


class Hub(ThreadingHTTPServer):
    """One repository with `files` as its commit FIRST, which is its branch `main`.

    `repo` as in addresses: org/model, datasets/org/speech.
    """

    daemon_threads = True

    def __init__(self, repo: str, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repo = repo
        self.commits = {FIRST: dict(files)}
        self.refs = {"main": FIRST}
        self.log: list[tuple[str, str, str | None]] = []
        self.sent: dict[str, int] = {}  # bytes of each file
        self.error: tuple[int, str] | None = None
        self.cuts: list[int] = []  # how many bytes each coming download of weights may send
        self.short = 0  # how many bytes all downloads of weights leave out
        self.move_main_to = ""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> list[str]:
        paths = [path for method, path, _ in self.log if method == "GET" and "/resolve/" in path]
        return [path.rpartition("/")[2] for path in paths]


@contextlib.contextmanager
def serving(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """Serve `hub` as huggingface.co; huggingface_hub caches its files in cache/ in the folder."""
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub waits to retry
    monkeypatch.chdir(folder)
    huggingface_hub.close_session()
    HfFileSystem.clear_instance_cache()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
        huggingface_hub.close_session()
        HfFileSystem.clear_instance_cache()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.log.append((self.command, self.path, self.headers.get("Range")))
        kind = "" if "/" in hub.repo.partition("/")[2] else "models/"  # of datasets in `repo`
        files, about = f"/{hub.repo}/resolve/", f"/api/{kind}{hub.repo}"
        if hub.error:
            return self.fail(*hub.error)
        if path.startswith(files):
            what, rest = "file", path.removeprefix(files)
        elif path.startswith(about):
            what, _, rest = path.removeprefix(about).lstrip("/").partition("/")
        else:
            return self.fail(404, "RepoNotFound")
        revision, _, name = rest.partition("/")
        commit = hub.refs.get(revision or "main", revision)
        if commit not in hub.commits:
            return self.fail(404, "RevisionNotFound")
        answers = {"file": self.file, "tree": self.tree}
        return answers.get(what, self.info)(commit, name, body)

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def fail(self, status: int, code: str, **headers: str) -> None:
        self.head(status, 0, X_Error_Code=code, **headers)

    def json(self, value, body: bool) -> None:
        content = json.dumps(value).encode()
        self.head(200, len(content), Content_Type="application/json")
        if body:
            self.wfile.write(content)

    def info(self, commit: str, _: str, body: bool) -> None:
        siblings = [{"rfilename": name} for name in self.server.commits[commit]]
        repo = self.server.repo.removeprefix("datasets/")
        self.json({"id": repo, "sha": commit, "siblings": siblings}, body)

    def tree(self, commit: str, folder: str, body: bool) -> None:
        files = self.server.commits[commit]
        prefix = f"{folder}/" if folder else ""
        below = [name for name in files if name.startswith(prefix)]
        if not below:
            return self.fail(404, "EntryNotFound")
        entries = {}
        for name in below:
            first, deeper, _ = name.removeprefix(prefix).partition("/")
            size = 0 if deeper else len(files[name])
            kind = "directory" if deeper else "file"
            entries[first] = {"type": kind, "path": prefix + first, "size": size, "oid": "0" * 40}
        self.json(list(entries.values()), body)

    def file(self, commit: str, name: str, body: bool) -> None:
        hub = self.server
        content = hub.commits[commit].get(name)
        if content is None:
            return self.fail(404, "EntryNotFound", X_Repo_Commit=commit)
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": commit}
        large = body and "." in name and not name.endswith(".json")
        if large and hub.short:
            content = content[: -hub.short]
        status, total = 200, len(content)
        if requested := self.headers.get("Range"):
            first, _, last = requested.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else total]
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(content) - 1}/{total}"
            status = 206
        self.head(status, len(content), **headers)
        if body:
            cut = hub.cuts.pop(0) if large and hub.cuts else len(content)
            hub.sent[name] = hub.sent.get(name, 0) + len(content[:cut])
            self.wfile.write(content[:cut])
            self.close_connection |= cut < len(content)
            if hub.move_main_to:
                hub.refs["main"] = hub.move_main_to
