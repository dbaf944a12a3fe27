"""A headless Chromium, driven by Playwright: pages in, console errors out."""

import os
import shutil
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
OPTIONS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


def find() -> str | None:
    """Return the path of a Chromium, `$CHROMIUM` first, or None."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One tab of a browser; `errors`: console errors, uncaught exceptions and foreign requests since `open`.

    Args:
        page: Playwright's.
        own: how addresses begin that it may ask for.
        timeout: how long something may take, in seconds.
    """

    def __init__(self, page, own: str, timeout: float):
        self.page, self.run, self.errors = page, page.evaluate, []
        page.set_default_timeout(1e3 * timeout)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "assert") and self.errors.append(said.text))
        allowed = (own, "data:", "blob:", "about:")
        page.on(
            "request",
            lambda asked: asked.url.startswith(allowed) or self.errors.append(f"request to the network: {asked.url}"),
        )

    def open(self, url: str) -> None:
        """Load a page and wait for its load event."""
        self.errors.clear()
        self.page.goto(str(url))

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Set the size of the window in CSS pixels; a phone has a wide page shrunk, unless it says otherwise."""
        options = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.page.context.new_cdp_session(self.page).send("Emulation.setDeviceMetricsOverride", options)

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        self.page.wait_for_function(script)


@contextmanager
def open_tab(timeout: float = 60, server: str = ""):
    """A tab without network; `server`: an address of this machine that it may talk to, "127.0.0.1:8888"."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=find(), args=OPTIONS)
        yield Tab(chromium.new_page(), f"http://{server}/" if server else "file:", timeout)
        chromium.close()
