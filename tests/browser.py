"""A real browser without a screen, for what only shows in one: keys, focus, music, what a page may load."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
WORDS = (
    "--headless=new",
    "--disable-gpu",
    "--no-sandbox",  # a container's root has no sandbox; it opens our own pages
    "--window-size=1280,800",
    "--autoplay-policy=document-user-activation-required",  # as on everybody's screen
)


class Page:
    """The window of a browser as a person uses it: by keys and by looking."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get("about:blank")  # another name behind the # would be no new page
        self.driver.get(address)
        self.driver.get_log("browser")

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def text(self, identity: str) -> str:
        """What can be read there."""
        return str(self.run(f"return document.getElementById('{identity}').innerText"))

    def wait(self, what: Callable[[], Any], seconds: float = 20) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, (
                f"waited in vain; the page says: {self.run('return document.body.innerText')}"
            )
            time.sleep(0.03)
        return found

    def complaints(self) -> list[str]:
        """What the browser's console has: errors of the scripts, and what the page was not allowed to do."""
        return [line["message"] for line in self.driver.get_log("browser")]

    def ask_for_less_motion(self, value: str = "reduce") -> None:
        features = [{"name": "prefers-reduced-motion", "value": value}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("NOT TESTED: nobody looks at our pages on this machine; install: chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for word in (*WORDS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(word)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    window = browser.current_window_handle
    yield Page(browser)
    for other in browser.window_handles:
        browser.switch_to.window(other)
        if other != window:
            browser.close()
    browser.switch_to.window(window)
    browser.get("about:blank")
