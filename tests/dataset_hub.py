"""A hub on 127.0.0.1: what `datasets` asks of huggingface.co to read a dataset."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "org/speech"
COMMIT = "4" * 40


class DatasetHub(ThreadingHTTPServer):
    """One dataset, REPO, with `files` as its only commit; `main` is its branch."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), DatasetHubHandler)
        self.files = dict(files)
        self.out_of_order = False
        self.sent: dict[str, int] = {}  # bytes of each file
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class DatasetHubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DatasetHub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def reply(self, status: int, content: bytes, body: bool, **headers: str) -> None:
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(content)), **named}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.out_of_order:
            return self.reply(500, b"", body)
        if path.startswith(f"/datasets/{REPO}/resolve/"):
            revision, _, name = path.split("/resolve/")[1].partition("/")
            return self.file(revision, name, body)
        if path.startswith(f"/api/datasets/{REPO}"):
            what, _, rest = path.removeprefix(f"/api/datasets/{REPO}").lstrip("/").partition("/")
            revision, _, folder = rest.partition("/")
            if revision not in ("", "main", COMMIT):
                return self.reply(404, b"", body, X_Error_Code="RevisionNotFound")
            if what == "tree":
                return self.tree(folder, body)
            siblings = [{"rfilename": name} for name in self.server.files]
            return self.json({"id": REPO, "sha": COMMIT, "siblings": siblings}, body)
        return self.reply(404, b"", body, X_Error_Code="RepoNotFound")

    def json(self, value, body: bool) -> None:
        self.reply(200, json.dumps(value).encode(), body, Content_Type="application/json")

    def tree(self, folder: str, body: bool) -> None:
        prefix = f"{folder}/" if folder else ""
        below = [name for name in self.server.files if name.startswith(prefix)]
        if not below:
            return self.reply(404, b"", body, X_Error_Code="EntryNotFound")
        found = {}
        for name in below:
            first, deeper, _ = name.removeprefix(prefix).partition("/")
            size = 0 if deeper else len(self.server.files[name])
            kind = "directory" if deeper else "file"
            found[first] = {"type": kind, "path": prefix + first, "size": size, "oid": "0" * 40}
        self.json(list(found.values()), body)

    def file(self, revision: str, name: str, body: bool) -> None:
        if revision not in ("main", COMMIT):
            return self.reply(404, b"", body, X_Error_Code="RevisionNotFound")
        if name not in self.server.files:
            return self.reply(404, b"", body, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content, status, told = self.server.files[name], 200, {}
        total = len(content)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else total]
            status = 206
            told["Content_Range"] = f"bytes {first}-{int(first) + len(content) - 1}/{total}"
        if body:
            self.server.sent[name] = self.server.sent.get(name, 0) + len(content)
        self.reply(status, content, body, ETag=f'"{name}"', X_Repo_Commit=COMMIT, **told)
