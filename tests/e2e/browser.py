"""A real Chromium without a window, its own profile, and what it did."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from e2e.server_process import wait_until

PATIENCE_SECONDS = 60.0
DESKTOP, PHONE = (1320, 900), (390, 844)


class Browser:
    """A tab, and what tests look at in it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._asked: list[str] = []

    def open(self, url: str) -> None:
        self.driver.get(url)

    def resize(self, width: int, height: int) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, holds: Callable[[], Any], *, what: str) -> None:
        """Wait for what the page is about to show; what it draws anew meanwhile is looked for again."""

        def now() -> bool:
            try:
                return bool(holds())
            except StaleElementReferenceException:
                return False

        wait_until(now, what=what, seconds=PATIENCE_SECONDS)

    def one(self, selector: str) -> WebElement:
        self.wait(lambda: self.all(selector), what=f"there is {selector}")
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """Return what an element says, whether or not it is in view; nothing while there is none."""
        found = self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        return str(found)

    def click(self, selector: str) -> None:
        def clicked() -> bool:
            elements = [element for element in self.all(selector) if element.is_displayed()]
            if not elements:
                return False
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", elements[0])
            elements[0].click()
            return True

        self.wait(clicked, what=f"{selector} can be clicked")

    def fill(self, selector: str, text: str) -> None:
        element = self.one(selector)
        element.clear()
        element.send_keys(text)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def module(self, name: str, code: str, *arguments: Any) -> Any:
        """Run code with a module of the page as ``m``, and return its value."""
        source = (
            "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);"
            f"import(new URL('{name}', location.href)).then((m) => ((...a) => {{ {code} }})(...given)).then(done, "
            "(error) => done(`failed: ${error}`))"
        )
        return self.driver.execute_async_script(source, *arguments)

    def complaints(self) -> list[str]:
        """Return what the console has said since the last call."""
        log: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [str(entry["message"]) for entry in log]

    def asked(self) -> list[str]:
        """Return all URLs that were asked for, by whatever part of the page."""
        log: list[dict[str, Any]] = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        for entry in log:
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                self._asked.append(event["params"]["request"]["url"])
        return self._asked

    def nameless(self) -> list[str]:
        """Return the roles of what can be operated but has no name that a screen reader could say."""
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        operable = {"button", "link", "textbox", "combobox", "radio", "image", "dialog"}
        return [
            node["role"]["value"]
            for node in nodes
            if not node["ignored"]
            and node["role"]["value"] in operable
            and not node.get("name", {}).get("value", "").strip()
        ]


@contextmanager
def browsing(profile: Path, *, trusts_any_certificate: bool = False) -> Iterator[Browser]:
    """Open a browser; skips the test where there is none."""
    chromium, driver_program = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver_program is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-dev-shm-usage"):
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={profile}")
    options.accept_insecure_certs = trusts_any_certificate
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        driver.set_page_load_timeout(PATIENCE_SECONDS)
        driver.set_script_timeout(PATIENCE_SECONDS)
        browser = Browser(driver)
        browser.resize(*DESKTOP)
        yield browser
    finally:
        driver.quit()
