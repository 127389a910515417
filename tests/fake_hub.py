"""A server of this process that plays the Hugging Face Hub for the real client: login, repositories, commits.

Small files travel inside the commit, files of weights by the LFS protocol, as on the Hub.
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class FakeHub(ThreadingHTTPServer):
    """Repositories by name; `token` is the only valid one, of the user `me`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token, self.role = "hf_valid", "write"
        self.repos: dict[str, dict] = {}
        self.uploaded: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refused = ""
        """A part of the paths that are answered with 403."""

    def files(self, name: str) -> dict[str, bytes]:
        return self.repos[name]["files"]


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_):
        pass

    def _answer(self, value, status=200, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": "0" * 40, **headers}
        for key, text in headers.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self):
        hub, path = self.server, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {path}")
        if path.startswith("/lfs/"):
            hub.uploaded[path.removeprefix("/lfs/")] = body
            return self._answer({})
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if hub.refused and hub.refused in path:
            return self._answer({"error": "You have no right to do this."}, 403)
        if path == "/api/whoami-v2":
            return self._answer({"name": "me", "auth": {"accessToken": {"role": hub.role}}})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        parts = path.removeprefix("/api/models").strip("/").removesuffix(".git/info/lfs/objects/batch")
        name, rest = "/".join(parts.split("/")[:2]), parts.split("/")[2:]
        if name not in hub.repos:
            return self._answer({"error": "not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        if path.endswith("/objects/batch"):
            return self._lfs(json.loads(body))
        return self._repository(name, rest, body)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _create(self, options):
        owner = options.get("organization") or "me"
        name = f"{owner}/{options['name']}"
        if name in self.server.repos:
            return self._answer({"url": f"{self.server.url}/{name}"}, 409)
        private = (
            options.get("private") or options.get("visibility") == "private"
        )  # of old clients, and of new
        self.server.repos[name] = {"files": {}, "private": bool(private)}
        return self._answer({"url": f"{self.server.url}/{name}"})

    def _lfs(self, request):
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            for item in request["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _repository(self, name, rest, body):
        repo = self.server.repos[name]
        if not rest:
            return self._answer({"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": []})
        if rest[0] == "tree":
            return self._answer(
                [
                    {"type": "file", "path": file, "size": len(content), "oid": _sha1(content)}
                    for file, content in repo["files"].items()
                ]
            )
        if rest[0] == "resolve":
            content = repo["files"]["/".join(rest[2:])]
            return self._answer(content, ETag=f'"{_sha1(content)}"')
        if rest[0] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo["files"][value["path"]] = self.server.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo["files"][value["path"]]
        url = f"{self.server.url}/{name}/commit/{'0' * 40}"
        return self._answer(
            {"success": True, "commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None}
        )


def _sha1(content):
    return hashlib.sha1(content).hexdigest()
