"""What `generate --view` costs a run: seconds with a page that somebody watches, and without.

    python benchmarks/live_view.py [--preset standard] [--rounds 5] [--json FILE]

Runs with and without take turns. Who watches is a client of viser's own protocol that takes what is sent and
draws nothing: a browser's drawing, on another machine or on a GPU, is no part of the run. The seconds are
those of the loop, which the page slows down, and those of the whole command, with viser's import and start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import viser
from websockets.sync.client import connect

from ddpo3d_fast import __version__
from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine

OUTSIDE = ("setup", "export")  # parts of a run that are not the loop's
CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": (1.0, 0.0, 0.0, 0.0),
    "position": (0.0, 0.0, 3.0),
    "fov": 0.7,
    "near": 0.01,
    "far": 1000.0,
    "image_height": 512,
    "image_width": 512,
    "look_at": (0.0, 0.0, 0.0),
    "up_direction": (0.0, 1.0, 0.0),
}


def watch(url: str, received: list[int]) -> None:
    """Takes all that a page sends, until it goes, and counts the bytes."""
    address, protocol = url.replace("http", "ws"), f"viser-v{viser.__version__}"
    with connect(address, subprotocols=[protocol], max_size=None, compression=None) as socket:  # type: ignore[list-item]
        socket.send(msgspec.msgpack.encode(CAMERA))
        for message in socket:
            received[0] += len(message)


def run(preset: str, folder: Path, view: bool) -> dict[str, Any]:
    """Makes an asset and returns its seconds, its bytes and how much was sent."""
    words = [
        sys.executable,
        "-m",
        "ddpo3d_fast",
        "generate",
        "--prompt",
        "a red mushroom",
        "--preset",
        preset,
    ]
    words += ["--json", "--output", str(folder), *(["--view", "--port", "0"] if view else [])]
    received, began = [0], time.perf_counter()
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            if told["stage"] == "view":
                threading.Thread(target=watch, args=(told["url"], received), daemon=True).start()
    wall = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"generate ended with exit code {process.returncode}")
    seconds = told["seconds"]
    return {
        "view": view,
        "loop": seconds["total"] - sum(seconds[part] for part in OUTSIDE),
        "wall": wall,
        "bytes_sent": received[0],
        "asset": (folder / "asset.ply").read_bytes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="standard", help="default: standard")
    parser.add_argument("--rounds", type=int, default=5, help="turns of both; default: 5")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.rounds):
            for view in (False, True) if number % 2 else (True, False):
                rows.append(run(options.preset, Path(temporary) / f"{number}-{view}", view))
                print({name: value for name, value in rows[-1].items() if name != "asset"}, flush=True)
    same = len({row.pop("asset") for row in rows}) == 1
    if not all(row["bytes_sent"] > 10_000 for row in rows if row["view"]):
        sys.exit("a page was not watched, so that its run shows nothing")
    medians = {
        part: [statistics.median(row[part] for row in rows if row["view"] is view) for view in (False, True)]
        for part in ("loop", "wall")
    }
    cost = {part: 100 * (seen / unseen - 1) for part, (unseen, seen) in medians.items()}
    print(
        f"{options.preset}: the loop takes {cost['loop']:+.1f} % with a page that is watched, the command "
        f"{cost['wall']:+.1f} %; {'' if same else 'NOT '}the same asset"
    )
    if options.json:
        facts = {"machine": machine(), "version": __version__, "viser": viser.__version__}
        data = facts | {"preset": options.preset, "runs": rows, "percent": cost, "same": same}
        write_text(options.json, json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
