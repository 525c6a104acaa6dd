"""A Hugging Face hub on localhost, as far as fetching and publishing models goes: real HTTP, files in memory."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Repo:
    """Files by commit, and commits by branch or tag."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.messages: list[str] = []

    def commit(self, files: dict[str, bytes], ref: str = "main", message: str = "") -> str:
        before = self.commits.get(self.refs.get(ref, ""), {})
        content = repr((len(self.commits), sorted(files))).encode()
        sha = hashlib.sha1(content).hexdigest()
        self.commits[sha] = {**before, **files}
        self.refs[ref] = sha
        self.messages.append(message)
        return sha


class Hub:
    """The server; `requests` are those that came, and `cut` are names of files that break off half-way."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut: set[str] = set()
        self.forbidden = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def answer(self, status: int, body: bytes, close: bool = False, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if close else body)
                if close:
                    self.close_connection = True

            def json(self, value: Any) -> None:
                self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

            def missing(self, code: str) -> None:
                self.answer(404, b"{}", X_Error_Code=code, X_Error_Message="not there")

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    content = b""
                    while size := int(self.rfile.readline(), 16):
                        content += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return content
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def handle_request(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                path = self.path.partition("?")[0].strip("/").split("/")
                if path[0] == "api":
                    self.api(path[1:])
                elif path[2:3] == ["resolve"]:
                    self.file("/".join(path[:2]), path[3], "/".join(path[4:]))
                elif path[-1] == "batch":
                    self.batch()
                elif path[0] == "upload":
                    hub.objects[path[1]] = self.body()
                    self.answer(200, b"")
                else:
                    self.missing("EntryNotFound")

            do_GET = do_HEAD = do_POST = do_PUT = handle_request

            def api(self, path: list[str]) -> None:
                if path == ["repos", "create"]:
                    return self.create()
                if path == ["validate-yaml"]:
                    self.body()
                    return self.json({"errors": [], "warnings": []})
                name, verb = "/".join(path[1:3]), path[3] if len(path) > 3 else "revision"
                if name not in hub.repos:
                    return self.missing("RepoNotFound")
                repo, ref = hub.repos[name], path[4] if len(path) > 4 else "main"
                if verb == "preupload":
                    files = json.loads(self.body())["files"]
                    modes = {True: "lfs", False: "regular"}
                    large = [(f["path"], modes[f["path"].endswith(".safetensors")]) for f in files]
                    return self.json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in large]})
                if verb == "commit":
                    return self.commit(name, repo, ref)
                sha = repo.refs.get(ref, ref)
                if sha not in repo.commits:
                    return self.missing("RevisionNotFound")
                files = repo.commits[sha]
                if verb == "tree":
                    return self.json(
                        [{"type": "file", "path": p, "size": len(c), "oid": etag(c)} for p, c in files.items()]
                    )
                return self.json({"id": name, "sha": sha, "siblings": [{"rfilename": p} for p in files]})

            def create(self) -> None:
                fields = json.loads(self.body())
                name = f"{fields['organization']}/{fields['name']}" if fields.get("organization") else fields["name"]
                if hub.forbidden:
                    return self.answer(
                        403, b'{"error": "You may not write here"}', X_Error_Message="You may not write here"
                    )
                private = fields.get("visibility") == "private" or bool(fields.get("private"))
                if name in hub.repos:
                    return self.answer(409, json.dumps({"url": f"{hub.address}/{name}"}).encode())
                hub.repos[name] = Repo(private)
                self.json({"url": f"{hub.address}/{name}"})

            def batch(self) -> None:
                objects = json.loads(self.body())["objects"]
                done = [
                    {**each, "actions": {"upload": {"href": f"{hub.address}/upload/{each['oid']}"}}} for each in objects
                ]
                self.json({"transfer": "basic", "objects": done})

            def commit(self, name: str, repo: Repo, ref: str) -> None:
                files: dict[str, bytes] = {}
                message = ""
                for line in self.body().decode().splitlines():
                    item = json.loads(line)
                    value = item["value"]
                    if item["key"] == "header":
                        message = value["summary"]
                    elif item["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    else:
                        files[value["path"]] = hub.objects[value["oid"]]
                sha = repo.commit(files, ref, message)
                self.json({"commitUrl": f"{hub.address}/{name}/commit/{sha}", "commitOid": sha})

            def file(self, name: str, revision: str, path: str) -> None:
                repo = hub.repos[name]
                sha = repo.refs.get(revision, revision)
                if path not in repo.commits.get(sha, {}):
                    return self.missing("EntryNotFound")
                content = repo.commits[sha][path]
                headers = {"ETag": f'"{etag(content)}"', "X_Repo_Commit": sha}
                self.answer(200, content, close=path in hub.cut and self.command == "GET", **headers)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
