"""A stand-in for the hub on this machine: repositories of files in memory, behind the requests that pushing and pulling
make.  https://huggingface.co/docs/hub/api"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class Hub(ThreadingHTTPServer):
    """repositories: {"user/name": [{path: content}, ...]}, a dict for each commit.  private: names.  asked: requests
    made so far, "GET /..." each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def sha(commit: int) -> str:
    return f"{commit:040x}"


class Requests(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: object = None, headers: dict | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def given(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def missing(self, code: str) -> None:
        self.answer(404, {"error": code}, {"X-Error-Code": code})

    def found(self, name: str, revision: str) -> tuple[int, dict[str, bytes]] | None:
        """The commit asked for, and its files."""
        commits = self.server.repositories.get(name)
        if commits is None:
            return self.missing("RepoNotFound")
        revisions = {sha(number): number for number in range(len(commits))} | {"main": len(commits) - 1}
        if revision not in revisions:
            return self.missing("RevisionNotFound")
        return revisions[revision], commits[revisions[revision]]

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self.given()
        self.server.asked.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if name in self.server.repositories:
                return self.answer(409, {"error": "exists", "url": f"{self.server.address}/{name}"})
            self.server.repositories[name] = [{}]
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            each = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            return self.answer(200, {"files": each})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            commits = self.server.repositories[found[1]]
            files = dict(commits[-1])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commits.append(files)
            oid = sha(len(commits) - 1)
            url = f"{self.server.address}/{found[1]}/commit/{oid}"
            return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
        return self.missing("EntryNotFound")

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if at := self.found(found[1], found[2] or "main"):
                siblings = [{"rfilename": name} for name in at[1]]
                self.answer(200, {"id": found[1], "modelId": found[1], "sha": sha(at[0]), "siblings": siblings})
            return None
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            if at := self.found(found[1], found[2]):
                files = [
                    {"type": "file", "path": name, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for name, c in at[1].items()
                ]
                self.answer(200, files)
            return None
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if at := self.found(found[1], found[2]):
                number, files = at
                if found[3] not in files:
                    return self.missing("EntryNotFound")
                content = files[found[3]]
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(200, content, {"ETag": tag, "X-Repo-Commit": sha(number), "Accept-Ranges": "bytes"})
            return None
        return self.missing("EntryNotFound")

    do_HEAD = do_GET
