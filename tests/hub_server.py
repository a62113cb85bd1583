"""A hub on 127.0.0.1: what huggingface_hub asks of huggingface.co to download files."""

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO = "org/model"
FIRST = "1" * 40


class Hub(ThreadingHTTPServer):
    """One model, REPO, with `files` as its commit FIRST."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.commits = {FIRST: dict(files)}
        self.refs = {"main": FIRST}
        self.log: list[tuple[str, str, str | None]] = []
        self.error: tuple[int, str] | None = None
        self.cuts: list[int] = []  # how many bytes each coming download of weights may send
        self.short = 0  # how many bytes all downloads of weights leave out
        self.move_main_to = ""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> list[str]:
        paths = [path for method, path, _ in self.log if method == "GET" and "/resolve/" in path]
        return [path.rpartition("/")[2] for path in paths]


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, body: bool) -> None:
        hub = self.server
        hub.log.append((self.command, self.path, self.headers.get("Range")))
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if hub.error:
            return self.fail(*hub.error)
        if repo != REPO:
            return self.fail(404, "RepoNotFound")
        commit = hub.refs.get(revision, revision)
        if commit not in hub.commits:
            return self.fail(404, "RevisionNotFound")
        content = hub.commits[commit].get(name)
        if content is None:
            return self.fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        self.send_file(commit, name, content, body)
        if hub.move_main_to and body:
            hub.refs["main"] = hub.move_main_to

    def send_file(self, commit: str, name: str, content: bytes, body: bool) -> None:
        etag = hashlib.sha256(content).hexdigest()
        large = body and "." in name and not name.endswith(".json")
        if large and self.server.short:
            content = content[: -self.server.short]
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            total = len(content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if body:
            cut = self.server.cuts.pop(0) if large and self.server.cuts else len(content)
            self.wfile.write(content[start : start + cut])
            self.close_connection = cut < len(content) - start
