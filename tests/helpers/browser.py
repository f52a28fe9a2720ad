"""A real browser for tests: Chromium, headless, driven by its DevTools protocol over a pipe.

Nothing to install but the browser (Debian and Ubuntu: ``apt-get install chromium``), which is
looked for on PATH and in ``MOE_HARNESS_BROWSER``. It can reach nothing: every name fails to
resolve, every address goes to a proxy that is not there, and the protocol is told to be offline.
"""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE = 60.0  # seconds, on a machine that is busy with other things


def find_browser():
    named = os.environ.get("MOE_HARNESS_BROWSER")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """One page. ``errors`` are what its console calls errors; ``requests`` what it asked for."""

    def __init__(self, binary, folder, *, width=1280, height=800, dark=False):
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        command = [
            "bash",  # a plain sh knows no file descriptor above 9
            "-c",
            f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}',
            "bash",
            binary,
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--proxy-server=127.0.0.1:9",
            f"--user-data-dir={folder}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._buffer = ours_in, ours_out, b""
        self._numbers, self._session = itertools.count(1), None
        self.errors, self.requests, self._answers, self._loaded = [], [], {}, False
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
            self.ask(
                "Network.emulateNetworkConditions",
                offline=True,
                latency=0,
                downloadThroughput=0,
                uploadThroughput=0,
            )
            self.ask(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=width < 600,
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self.ask("Emulation.setEmulatedMedia", features=[scheme])
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        with contextlib.suppress(OSError, AssertionError):  # asked, it ends its children too
            self._session = None
            self.ask("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for end in (self._in, self._out):
            with contextlib.suppress(OSError):
                os.close(end)

    def open(self, url):
        self._loaded = False
        if "loaderId" in self.ask("Page.navigate", url=url):  # not so within one document
            self._until(lambda: self._loaded, f"{url} loads")

    def evaluate(self, script):
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script):
        end = time.monotonic() + _PATIENCE
        while not self.evaluate(script):
            assert time.monotonic() < end, f"never came true: {script}; errors: {self.errors}"
            time.sleep(0.05)

    def picture(self, path, *, whole=False):
        answer = self.ask(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole)
        )
        path.write_bytes(base64.b64decode(answer["data"]))

    def _clip(self, whole):
        if not whole:
            return {}
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "x": 0, "y": 0, "scale": 1}}

    def ask(self, method, **parameters):
        number = next(self._numbers)
        question = {"id": number, "method": method, "params": parameters}
        if self._session:
            question["sessionId"] = self._session
        os.write(self._out, json.dumps(question).encode() + b"\0")
        answer = {}

        def answered():
            answer.update(self._answers.pop(number, {}))
            return bool(answer)

        self._until(answered, f"{method} is answered")
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, true, what):
        end = time.monotonic() + _PATIENCE
        while not true():
            assert time.monotonic() < end, f"waited {_PATIENCE:g} s in vain: {what}"
            self._read()

    def _read(self):
        if not select.select([self._in], [], [], 0.05)[0]:
            return
        came = os.read(self._in, 1 << 20)
        assert came, "the browser has gone"
        *messages, self._buffer = (self._buffer + came).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method, seen):
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(seen["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(seen["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and seen["type"] in ("error", "assert"):
            self.errors.append(str(seen["args"]))
        elif method == "Log.entryAdded" and seen["entry"]["level"] == "error":
            self.errors.append(f"{seen['entry']['text']} {seen['entry'].get('url', '')}")
