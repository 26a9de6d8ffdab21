"""A page in a headless Chromium, and what it posts: no driver, the page itself sends its pictures."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# WebGL 2 without a GPU; no sandbox, which needs rights that a container's user has not.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--mute-audio", "--no-first-run"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
)


def posted(page: str, folders: Mapping[str, Path], names: set[str], timeout: float = 120) -> dict[str, bytes]:
    """What a page posts to /NAME until every name of `names` has come.

    Args:
        page: the HTML; a body posted to /error ends it.
        folders: what is served below /KEY/.

    Raises:
        AssertionError: the page posted an error, or not everything in time.
    """
    found: dict[str, bytes] = {}
    done = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(page.encode())
            else:
                super().do_GET()

        def translate_path(self, path: str) -> str:
            _, key, *rest = path.partition("?")[0].split("/")
            return str(Path(folders[key], *rest)) if key in folders and ".." not in rest else "/nowhere"

        def do_POST(self) -> None:
            found[self.path[1:]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            if "error" in found or names <= found.keys():
                done.set()

        def log_message(self, *words: Any) -> None:
            pass

    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler)) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        words = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", address]
        browser = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            done.wait(timeout)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    assert "error" not in found, found["error"].decode()
    assert names <= found.keys(), f"not posted in {timeout} s: {sorted(names - found.keys())}"
    return found
