"""A Hugging Face Hub on this machine, for its real client: as much of it as downloads use."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.plan.default_model import DEFAULT_MODEL
from tests.forking import Servers
from tests.helpers import ROOT

DEFAULT_REPO, DEFAULT_COMMIT = DEFAULT_MODEL.removeprefix("hf-hub:").split("@")
UNREACHABLE = "http://127.0.0.1:9"
# Runs before the command: the Hub's client waits a second before each of its five tries.
IMPATIENT = "import time\nwait = time.sleep\ntime.sleep = lambda seconds: wait(seconds / 20)\n"


class HubServer(ThreadingHTTPServer):
    """The models acme/vit and the default one, both of the files in a folder.

    `commits` are what revisions are. `cuts_off` is a file of which half is sent: then the Hub
    `is_down`, or not where `cuts_once`. `damages` is one that arrives with another byte, `is_slow`
    that every connection is taken and none answered, `answers_with` a status for all requests.
    """

    daemon_threads = True

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.requests: list[str] = []
        self.commits = {"main": "a" * 40, "v1": "b" * 40}
        self.cuts_off: str | None = None
        self.cuts_once = False
        self.damages: str | None = None
        self.is_down = False
        self.is_slow = False
        self.answers_with: int | None = None

    def commit_of(self, repo: str, revision: str) -> str | None:
        known = (
            {**self.commits, DEFAULT_COMMIT: DEFAULT_COMMIT}
            if repo == DEFAULT_REPO
            else self.commits
        )
        return known.get(revision, revision if revision in known.values() else None)

    def __enter__(self) -> "HubServer":
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    """HEAD and GET of REPO/resolve/REVISION/FILE, also as a proxy is asked for it."""

    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET(with_body=False)

    def do_GET(self, with_body: bool = True) -> None:
        server = self.server
        server.requests.append(
            f"{self.command} {self.path} {self.headers.get('Range', '')}".strip()
        )
        if server.is_slow:
            time.sleep(8)  # longer than anybody should wait
        if server.is_down or server.is_slow:
            self.close_connection = True
            return
        if server.answers_with:
            code = {"X-Error-Code": "RepoNotFound"} if server.answers_with == 404 else {}
            self.answer(server.answers_with, {"Content-Length": "0"} | code)
            return
        match = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/([^/]+)/(.+)", urlsplit(self.path).path)
        if not match or match[1] not in ("acme/vit", DEFAULT_REPO):
            self.refuse("RepoNotFound")
            return
        repo, revision, name = match.groups()
        commit = server.commit_of(repo, revision)
        if commit is None:
            self.refuse("RevisionNotFound")
            return
        path = server.files / name
        if not path.is_file():
            self.refuse("EntryNotFound", commit)
            return
        self.send_file(path, commit, with_body)

    def send_file(self, path: Path, commit: str, with_body: bool) -> None:
        server, data = self.server, path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        status, begin = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, begin = 206, int(match[1])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.answer(status, headers | {"Content-Length": str(len(data) - begin)})
        if not with_body:
            return
        if server.damages == path.name:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if server.cuts_off == path.name:  # half the file, and then no network, or a new connection
            self.wfile.write(data[begin : len(data) // 2])
            server.is_down, self.close_connection = not server.cuts_once, True
            server.cuts_off = None if server.cuts_once else server.cuts_off
            return
        self.wfile.write(data[begin:])

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def refuse(self, code: str, commit: str | None = None) -> None:
        more = {"X-Repo-Commit": commit} if commit else {}
        self.answer(404, {"X-Error-Code": code, "Content-Length": "0"} | more)

    def log_message(self, *_: object) -> None:
        pass


class Hub:
    """The server, and ways to use it in a process of its own with a cache that was empty at first."""

    def __init__(self, server: HubServer, home: Path, servers: Servers) -> None:
        self.server, self.home, self.servers = server, home, servers
        self.url = f"http://127.0.0.1:{server.server_port}"

    def load(self, name: str, url: str | None = None, before: str = "") -> tuple[str, str]:
        """Return the loaded model's name, or the error's text."""
        script = (
            "import sys, json\nfrom vit.classifier import load_classifier\nfrom vit.errors import "
            "ModelError\n"
            "try:\n    model = load_classifier(sys.argv[1])\n    print(json.dumps(['ok', "
            "model.name]))\n"
            "except ModelError as error:\n    print(json.dumps(['error', str(error)]))\n"
            "sys.exit()"
        )
        ran = self.run(name, url=url, before=before + script)
        assert ran.stdout, ran.stderr
        kind, text = json.loads(ran.stdout.splitlines()[-1])
        return kind, text

    def run(
        self, *words: Any, url: str | None = None, before: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in a process that has torch imported already."""
        environment = self.environment(url) | more
        words = tuple(map(str, words))
        ran = self.servers(environment).run(words, self.home.parent, environment, before)
        said = (text.decode() for text in (ran.stdout, ran.stderr))
        return subprocess.CompletedProcess(words, ran.returncode, *said)

    def python(
        self, *words: str, url: str | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100,
                              env=self.environment(url) | more, check=False)  # fmt: skip

    def environment(self, url: str | None = None) -> dict[str, str]:
        """As this one's, but for what says how to reach the Hub."""
        ours = {
            key: value
            for key, value in os.environ.items()
            if not key.lower().endswith("_proxy") and key != "HF_HUB_OFFLINE"
        }
        return ours | {
            "HF_ENDPOINT": url or self.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def downloads(self) -> list[str]:
        return [request for request in self.server.requests if request.startswith("GET")]
