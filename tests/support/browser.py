"""A page in headless Chromium, at the width of a desktop or of a phone."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and its driver (Debian: chromium-driver)"
)
DESKTOP, PHONE = (1280, 900), (390, 844)


class Browser:
    """A page in Chromium."""

    def __init__(self, size: tuple[int, int], downloads: Path):
        options = Options()
        options.binary_location = str(CHROMIUM)
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--window-size={size[0]},{size[1]}",
        ):  # fmt: skip
            options.add_argument(argument)
        if size == PHONE:
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.downloads = downloads
        self.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
        )

    def open(self, path: Path) -> None:
        self.driver.get(path.resolve().as_uri())
        self.wait(lambda: self.run("return document.body.dataset.ready"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def element(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def choose(self, selector: str, value: str) -> None:
        Select(self.element(selector)).select_by_value(value)

    def wait(self, condition: Callable[[], Any], seconds: float = 15) -> Any:
        """The value of the condition as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, self.console_messages()
            time.sleep(0.03)
        return value

    def over(self, plot: str, row: int, column: int) -> ActionChains:
        """The pointer on a cell of a map, brought into view."""
        place = self.run(
            """const plot = document.querySelector(arguments[0] + " .plot");
            plot.scrollIntoView({block: "center", behavior: "instant"});
            const box = plot.getBoundingClientRect();
            const {xaxis, yaxis} = plot._fullLayout;
            return [box.left + xaxis._offset + xaxis.d2p(arguments[2]),
                    box.top + yaxis._offset + yaxis.d2p(arguments[1])];""",
            plot, row, column,
        )  # fmt: skip
        actions = ActionChains(self.driver, duration=20)
        actions.w3c_actions.pointer_action.move_to_location(*map(round, place))
        return actions

    def saved(self, place: str, name: str) -> dict[str, bytes]:
        """The files that the buttons below a figure or a table save, by kind."""
        contents = {}
        selector = f"#{place} .downloads button"
        for button in self.driver.find_elements(By.CSS_SELECTOR, selector):
            # Chromium stops saving after ten files if a script clicks.
            button.send_keys(Keys.ENTER)
            kind = button.get_attribute("textContent").lower()
            path = self.downloads / f"{name}.{kind}"
            self.wait(path.is_file)
            contents[kind] = path.read_bytes()
        return contents

    def console_messages(self) -> list[str]:
        """The messages on the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


def opened_browser(size: tuple[int, int], folder: Path) -> Iterator[Browser]:
    """A browser that is closed again; `folder` is where it saves files."""
    browser = Browser(size, folder)
    try:
        yield browser
    finally:
        browser.driver.quit()
