"""A headless Chromium over the DevTools protocol: pages in, console errors out.

The protocol is JSON over a pair of pipes (`--remote-debugging-pipe`: the browser reads file descriptor 3 and writes 4),
so nothing but the browser is needed.
"""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """Return the path of a Chromium, `$CHROMIUM` first, or None."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one tab and no network; a context manager.

    Args:
        path: of the browser; None looks for one.
        timeout: how long it may be silent, in seconds.
        server: an address of this machine that it may talk to, "127.0.0.1:8888"; none: files only.

    Attributes:
        errors: console errors, uncaught exceptions, failed and foreign requests since the last `open`.
    """

    def __init__(self, path: str | None = None, timeout: float = 60, server: str = ""):
        self._own = f"http://{server}/" if server else "file:"
        self.timeout, self.errors, self._buffer, self._number = timeout, [], b"", 0
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read, self._write = os.pipe()
        self._read, write = os.pipe()

        def pipes():  # the browser wants exactly 3 and 4
            os.dup2(read, 13)
            os.dup2(write, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        command = [path or find(), "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"]
        command += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"]
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        command += ["--disable-background-networking", rules, "about:blank"]
        self._process = subprocess.Popen(
            command, close_fds=False, preexec_fn=pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._session = None
        tab = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if somebody sat before it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **parameters) -> dict:
        """Send one command and return its result; events that come meanwhile are looked at."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, url: str) -> None:
        """Load a page and wait for its load event."""
        self.errors, self._loaded = [], False
        failed = self.call("Page.navigate", url=str(url)).get("errorText")
        if failed:
            raise RuntimeError(f"{url}: {failed}")
        while not self._loaded:
            self._next()

    def run(self, script: str):
        """Evaluate JavaScript (a promise is waited for) and return its value."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=script, **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "script failed"))
        return answer["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + self.timeout
        while not self.run(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still false after {self.timeout} s: {script}")
            time.sleep(0.05)

    def press_right(self) -> None:
        """Press and release the right arrow in the focused element."""
        for change in ("keyDown", "keyUp"):
            key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
            self.call("Input.dispatchKeyEvent", type=change, **key)

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Set the size of the window in CSS pixels."""
        options = {"deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **options)

    def _next(self) -> dict:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], self.timeout)
            data = os.read(self._read, 1 << 16) if ready else b""
            if not data:
                raise TimeoutError(f"the browser has been silent for {self.timeout} s, or has ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(message)
        self._look_at(message.get("method"), message.get("params", {}))
        return message

    def _look_at(self, event: str | None, values: dict) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.errors.append(values["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.errors.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            url = values["request"]["url"]
            if not url.startswith((self._own, "data:", "blob:", "about:")):
                self.errors.append(f"request to the network: {url}")
