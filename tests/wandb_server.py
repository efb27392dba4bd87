"""A W&B server on loopback, as far as `wandb sync` needs one: it keeps what it is sent, and can be slow or broken."""

import gzip
import json
import re
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4


class WandbServer:
    """`runs` by id as their last UpsertBucket had them, `history` rows by run id, `artifacts` and who used them."""

    def __init__(self, status: int = 200, delay: float = 0.0) -> None:
        self.status, self.delay = status, delay  # of every answer; seconds before it
        self.requests = 0
        self.runs: dict[str, dict[str, Any]] = defaultdict(dict)
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.exits: dict[str, int] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}  # by name
        self.uses: list[tuple[str, str]] = []  # run, artifact
        self.views: list[dict[str, Any]] = []  # reports
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            run = self.runs[given["name"]]
            run |= {name: value for name, value in given.items() if value is not None}
            project = {"id": "P", "name": given["project"], "entity": {"id": "E", "name": "someone"}}
            lines = len(self.history[given["name"]])
            bucket = {"id": "B", "name": given["name"], "project": project, "historyLineCount": lines}
            return {"upsertBucket": {"bucket": bucket, "inserted": not lines}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            asked = given["input"]
            name = asked["artifactCollectionName"]
            state = "COMMITTED" if name in self.artifacts else "PENDING"
            self.artifacts.setdefault(name, asked)
            return {"createArtifact": {"artifact": {"id": name, "state": state, "artifactSequence": {}}}}
        if operation == "CreateArtifactManifest":
            file = {"id": "F", "uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}
        if operation == "CreateArtifactFiles":
            place = {
                "uploadUrl": f"{self.url}/upload/file",
                "uploadHeaders": [],
                "storagePath": "s",
                "artifact": {"id": "A"},
            }
            files = [{"node": {"id": "F", **place}}]
            return {"createArtifactFiles": {"files": {"edges": files * len(given["input"]["artifactFiles"])}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "A", "digest": "d"}}}
        if operation == "Viewer":
            teams: dict[str, Any] = {"edges": []}
            return {"viewer": {"id": "U", "entity": "someone", "username": "someone", "flags": "{}", "teams": teams}}
        if operation == "ProjectInternalId":
            return {"project": {"internalId": "P"}}
        if operation == "GetProjects":
            page = {"hasNextPage": False, "endCursor": None}
            return {"models": {"edges": [], "pageInfo": page, "totalCount": 0}}
        if operation == "UpsertModel":
            return {"upsertModel": {"project": {"id": "P", "name": given.get("name")}, "inserted": True}}
        if operation == "upsertView":
            self.views.append(given)
            return {"upsertView": {"view": given | {"id": "V"}, "inserted": True}}
        if operation == "UseArtifact":
            self.uses.append((given["input"]["runName"], given["input"]["artifactID"]))
            return {"useArtifact": {"artifact": {"id": "A"}}}
        return {}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                self.history[run][part["offset"] :] = [json.loads(line) for line in part["content"]]
        if sent.get("complete"):
            self.exits[run] = sent["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: WandbServer

    def log_message(self, *_: Any) -> None: ...

    def _answer(self) -> None:
        server = self.server_of
        server.requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        time.sleep(server.delay)
        content: dict[str, Any] = {}
        if server.status == 200 and self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            content = {"data": server.answer(operation[1] if operation else "", asked.get("variables") or {})}
        elif server.status == 200 and (stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)):
            server.stream(stream[1], json.loads(body))
        answer = json.dumps(content).encode()
        self.send_response(server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815
