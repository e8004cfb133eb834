"""An Iceberg REST catalog of a few lines for one engine: tables in memory, metadata and data on local disk, no checks.

SeaweedFS takes no deletion vectors, and pyiceberg commits nothing in version 3; this one takes what it is sent.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers.process import LOOPBACK


class RestCatalog(ThreadingHTTPServer):
    """tables: name -> metadata, of the one namespace that there is. Serve it in a thread, and `shutdown` it."""

    def __init__(self, folder: Path) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.folder = folder
        self.tables: dict[str, dict[str, Any]] = {}

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}"

    def metadata_file(self, name: str) -> Path:
        """The metadata of now, written."""
        path = self.folder / name / "metadata" / f"{uuid.uuid4()}.metadata.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name / "data").mkdir(exist_ok=True)
        path.write_text(json.dumps(self.tables[name]))
        return path

    def create(self, request: dict[str, Any]) -> None:
        version = int(request.get("properties", {}).pop("format-version", 2))
        self.tables[request["name"]] = {
            **{"format-version": version, "table-uuid": str(uuid.uuid4()), "last-updated-ms": 1},
            **{"location": f"file://{self.folder}/{request['name']}", "properties": request.get("properties", {})},
            **{"last-sequence-number": 0, "last-column-id": max(_ids(request["schema"])), "last-partition-id": 999},
            **{"schemas": [{**request["schema"], "schema-id": 0}], "current-schema-id": 0, "next-row-id": 0},
            **{"partition-specs": [{"spec-id": 0, "fields": []}], "default-spec-id": 0, "refs": {}},
            **{"sort-orders": [{"order-id": 0, "fields": []}], "default-sort-order-id": 0, "snapshots": []},
        }

    def update(self, name: str, updates: list[dict[str, Any]]) -> None:
        now = self.tables[name]
        for one in updates:
            match one["action"]:
                case "add-snapshot":
                    now["snapshots"].append(one["snapshot"])
                    now["last-sequence-number"] = one["snapshot"]["sequence-number"]
                    now["next-row-id"] += one["snapshot"].get("added-rows", 0)
                case "set-snapshot-ref":
                    now["refs"][one["ref-name"]] = {"snapshot-id": one["snapshot-id"], "type": one["type"]}
                    now["current-snapshot-id"] = one["snapshot-id"]
                case "upgrade-format-version":
                    now["format-version"] = one["format-version"]
                case "set-properties":
                    now["properties"] |= one["updates"]
                case "add-schema":
                    now["schemas"].append({**one["schema"], "schema-id": len(now["schemas"])})
                    now["last-column-id"] = max(now["last-column-id"], *_ids(one["schema"]))
                case "set-current-schema":
                    now["current-schema-id"] = len(now["schemas"]) - 1


class _Handler(BaseHTTPRequestHandler):
    server: RestCatalog
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        match self._words():
            case [*_, "namespaces"]:
                self._say(body)
            case [*_, "tables"]:
                self.server.create(body)
                self._table(body["name"])
            case [*_, "transactions", "commit"]:
                for one in body["table-changes"]:
                    self.server.update(one["identifier"]["name"], one["updates"])
                self._say(None, 204)
            case [*_, name]:
                self.server.update(name, body["updates"])
                self._table(name)

    def do_GET(self) -> None:
        match self._words():
            case ["v1", "config"]:
                self._say({"defaults": {}, "overrides": {}})
            case [*_, "namespaces"]:
                self._say({"namespaces": [["d"]]})
            case [*_, "tables"]:
                self._say({"identifiers": [{"namespace": ["d"], "name": name} for name in self.server.tables]})
            case [*_, "tables", name]:
                self._table(name)
            case _:
                self._say({"namespace": ["d"], "properties": {}})

    do_HEAD = do_GET

    def _words(self) -> list[str]:
        return self.path.partition("?")[0].strip("/").split("/")

    def _table(self, name: str) -> None:
        if name not in self.server.tables:
            self._say({"error": {"message": "no such table", "type": "NoSuchTableException", "code": 404}}, 404)
            return
        path = f"file://{self.server.metadata_file(name)}"
        self._say({"metadata-location": path, "metadata": self.server.tables[name], "config": {}})

    def _say(self, answer: object, status: int = 200) -> None:
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _ids(part: Any) -> Iterator[int]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("id", "element-id", "key-id", "value-id"):
                yield value
            else:
                yield from _ids(value)
    elif isinstance(part, list):
        for one in part:
            yield from _ids(one)
