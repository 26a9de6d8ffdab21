"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1", "--remote-debugging-port=0"),
)
PATIENCE = 60.0  # seconds for what takes one on an idle machine


def executable() -> str:
    """Chromium's path; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium: apt-get install chromium")


def eventually(told: Callable[[], Any], what: str) -> Any:
    """What a question gives as soon as it gives something."""
    end = time.monotonic() + PATIENCE
    while not (answer := told()):
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.05)
    return answer


class Tab:
    """A page, of a number of pixels a side."""

    def __init__(self, socket: Any, size: int) -> None:
        self._socket, self._numbers, self.size = socket, itertools.count(1), size
        square = {"width": size, "height": size, "deviceScaleFactor": 1, "mobile": False}
        self("Emulation.setDeviceMetricsOverride", **square)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(PATIENCE))).get("id") != number:
            pass  # an event
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url: str) -> None:
        self("Page.navigate", url=url)

    def reload(self) -> None:
        self("Page.reload")

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self) -> str:
        """All that can be read on the page."""
        return self.run("document.body ? document.body.innerText : ''")

    def press(self, label: str) -> None:
        """Clicks on the button of this label, with a mouse."""
        buttons = "[...document.querySelectorAll('button')]"
        find = f"{buttons}.find(b => b.innerText.trim() === {json.dumps(label)})"
        eventually(lambda: self._click(find), f"a button {label}")

    def choose(self, option: str) -> None:
        """Chooses from the page's one list, with the mouse; what moves under it is clicked on again."""
        seen = "e => e.getBoundingClientRect().width"
        inputs = "[...document.querySelectorAll('input[aria-haspopup=listbox], input[role=combobox]')]"
        options = f"[...document.querySelectorAll('[role=option]')].filter({seen})"
        wanted = f"{options}.find(o => o.innerText.trim() === {json.dumps(option)})"

        def clicked() -> bool:
            if self._click(wanted):
                return True
            self._click(f"{inputs}.find({seen})")
            time.sleep(0.5)
            return False

        eventually(clicked, f"an option {option}")

    def _click(self, find: str) -> bool:
        """Clicks on the middle of an element, if it is there."""
        box = "(b => { const r = b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })"
        place = self.run(f"({find}) ? {box}({find}) : null")
        for kind in ("mousePressed", "mouseReleased") if place else ():
            self("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)
        return bool(place)

    def picture(self) -> np.ndarray:
        """[H, W, 3] float64 in [0, 1], the 3D view without the panels over it."""
        canvas = "[...document.querySelectorAll('canvas')].find(c => c.width > 100)"
        eventually(lambda: self.run(f"Boolean({canvas})"), "a canvas")
        hide = "if (!e.contains(c) && e !== c) e.style.visibility = 'hidden'"
        each = f"document.querySelectorAll('body *').forEach(e => {{ {hide} }})"
        self.run(f"(() => {{ const c = {canvas}; c.style.visibility = 'visible'; {each} }})()")
        data = self("Page.captureScreenshot", format="png")["data"]
        image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        return np.asarray(image, dtype=np.float64) / 255


@contextlib.contextmanager
def tab(folder: Path, size: int = 512) -> Iterator[Tab]:
    """A tab of a browser of its own, which keeps its files in a new folder."""
    from websockets.sync.client import connect

    words = [executable(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            file = folder / "DevToolsActivePort"
            eventually(lambda: file.exists() and file.read_text().count("\n"), "Chromium")
            port = file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE) as answer:
                pages = [each for each in json.load(answer) if each["type"] == "page"]
            with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as socket:
                yield Tab(socket, size)
        finally:
            browser.terminate()
            browser.wait(PATIENCE)
