"""A picture of the view in three dimensions of a case's page. `chromium --screenshot` does not wait for WebGL, so the browser is driven by its DevTools protocol."""

import base64
import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket  # the package websocket-client

OPTIONS = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run", "--hide-scrollbars",
           "--remote-debugging-port=0", "--remote-allow-origins=*"]  # fmt: skip


class Tab:
    """A tab of a running browser, by its DevTools protocol."""

    def __init__(self, profile, seconds=60):
        port = Path(profile) / "DevToolsActivePort"
        end = time.monotonic() + seconds
        while not port.exists() or not port.read_text().strip():
            if time.monotonic() > end:
                raise TimeoutError("Chromium has not opened its port")
            time.sleep(0.1)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as answer:
            tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        self.socket = websocket.create_connection(tabs[0]["webSocketDebuggerUrl"], timeout=seconds)
        self.calls = 0

    def call(self, method, **params):
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.calls:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def evaluate(self, script):
        return self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"].get("value")


def photograph_3d(chromium, source, out, width, height, seconds=120):
    """Saves the part of the page `source` from its view in three dimensions on."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *OPTIONS, f"--window-size={width},{height}", f"--user-data-dir={profile}", source.resolve().as_uri()]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            tab, end = Tab(profile), time.monotonic() + seconds
            while tab.evaluate("document.readyState") != "complete" or not tab.evaluate("!!document.getElementById('in-3d')"):
                time.sleep(0.1)
            tab.evaluate("document.getElementById('in-3d').open = true")
            while "prediction" not in (tab.evaluate("document.getElementById('in-3d').dataset.shown") or ""):
                if time.monotonic() > end:
                    raise TimeoutError(f"{source}: nothing is shown in three dimensions")
                time.sleep(0.2)
            tab.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 2000)))")
            box = "(r => ({x: 0, y: r.top + scrollY - 12, width: innerWidth, height: r.height + 24, scale: 1}))"
            clip = tab.evaluate(f"{box}(document.getElementById('in-3d').getBoundingClientRect())")
            shot = tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
            out.write_bytes(base64.b64decode(shot["data"]))
        finally:
            browser.terminate()
            browser.wait(30)
    print(f"{out}: {out.stat().st_size // 1024} KiB")
