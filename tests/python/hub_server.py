"""A hub on loopback: the endpoints that huggingface_hub calls to make a repository and to commit files to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
LARGE = (".safetensors", ".png")  # what the hub's .gitattributes keep in LFS


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its files by path; `visible` is what was asked of a new one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visible: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.calls: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does; a token that is not the test's gets 401, one for another's name 403."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "other bytes"})
        self.server.objects[oid] = body
        return self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        self.server.calls.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.server.address}/storage/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            return self._commit(self.path.split("/api/models/")[1].partition("/commit/")[0], body)
        return self._answer(404, {"error": f"no endpoint {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        if not name.startswith("me/"):
            return self._answer(403, {"error": f"You don't have the rights to create a model under {name}"})
        url = f"{self.server.address}/{name}"
        if name in self.server.repositories:
            return self._answer(409, {"error": "You already created this model repo", "url": url})
        self.server.repositories[name] = {}
        self.server.visible[name] = asked
        return self._answer(200, {"url": url, "name": name, "id": name})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        url = f"{self.server.address}/{name}/commit/{COMMIT}"
        return self._answer(200, {"commitUrl": url, "commitOid": COMMIT})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass
