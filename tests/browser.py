"""Chromium without a window, for the tests that look at pages. The fixture `browser` is in conftest.py."""

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and os.environ.get("ENN_BROWSER")),
    reason="set ENN_BROWSER=1 on a machine with chromium and chromedriver",
)
LEFT, RIGHT, HOME = "\ue012", "\ue014", "\ue011"  # keys, as WebDriver writes them
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"


class Browser:
    """Chromium by the WebDriver protocol, which is JSON over HTTP: no client library is needed."""

    def __init__(self, url, profile):
        self.url = url
        options = {"binary": CHROMIUM, "args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self.call("POST", "/session", capabilities={"alwaysMatch": wanted})
        self.url += f"/session/{made['sessionId']}"

    def call(self, method, path, **body):
        content = None if method == "GET" else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page, width=1200, scheme="light"):
        """page: a path or an address."""
        self.chrome("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.chrome("Emulation.setDeviceMetricsOverride", **size)
        self.call("POST", "/url", url=page if isinstance(page, str) else page.resolve().as_uri())

    def chrome(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def ask(self, script):
        return self.call("POST", "/execute/sync", script=f"return {script}", args=[])

    def press(self, selector, keys):
        (element,) = self.call("POST", "/element", using="css selector", value=selector).values()
        self.call("POST", f"/element/{element}/value", text=keys)

    def complaints(self):
        return self.call("POST", "/se/log", type="browser")

    def picture(self):
        """What is on the screen, (height, width, 3) from 0 to 1."""
        from matplotlib.image import imread

        shot = self.chrome("Page.captureScreenshot", format="png")["data"]
        return imread(io.BytesIO(base64.b64decode(shot)))[..., :3]


@contextlib.contextmanager
def started(profile):
    """A `Browser`, its driver ended with it. profile: an empty folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, made = f"http://127.0.0.1:{port}", None
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/status", timeout=5):
                break
            time.sleep(0.1)
        made = Browser(url, profile)
        yield made
    finally:
        if made is not None:
            made.call("DELETE", "")
        driver.terminate()
        driver.wait(10)
