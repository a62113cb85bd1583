"""A page in headless Firefox, driven by its own protocol (Marionette): no driver is needed."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FIREFOX = shutil.which("firefox") or shutil.which("firefox-esr")
needs_firefox = pytest.mark.skipif(not FIREFOX, reason="needs firefox (Debian: firefox-esr)")

_PREFERENCES = {
    "marionette.port": 0,  # any; it is written into the profile
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.normandy.enabled": False,
    "toolkit.telemetry.enabled": False,
}
# The name of a reference to an element in the protocol of WebDriver.
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Firefox:
    """A browser of its own profile.

    Args:
        profile: a folder of its own.
    """

    def __init__(self, profile: Path):
        lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});" for k, v in _PREFERENCES.items()]
        (profile / "user.js").write_text("\n".join(lines), encoding="utf-8")
        command = [
            str(FIREFOX), "--headless", "--marionette", "--no-remote", "--profile", str(profile),
            "--width=1280", "--height=900",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(profile)},
        )
        try:
            written = profile / "MarionetteActivePort"
            port = int(self.wait(lambda: written.is_file() and written.read_text(), 60))
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
            self._count = 0
            self._received()
            self.command("WebDriver:NewSession", capabilities={})
        except BaseException:
            self._process.kill()
            raise

    def close(self) -> None:
        """End the browser."""
        try:
            self.command("Marionette:Quit", flags=["eForceQuit"])
            self._process.wait(20)
        finally:
            self._process.kill()

    def open(self, address: str) -> None:
        """Open a page and wait until its scripts have drawn everything."""
        self.command("WebDriver:Navigate", url=address)
        self.wait(lambda: self.run("return document.body.dataset.ready"))

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script, which sees the document, not the variables of the page."""
        found = self.command("WebDriver:ExecuteScript", script=script, args=list(arguments))
        return found["value"]

    def send_keys(self, selector: str, *keys: str) -> None:
        """Press keys on an element."""
        found = self.command("WebDriver:FindElement", using="css selector", value=selector)
        element = found["value"][_ELEMENT]
        self.command("WebDriver:ElementSendKeys", id=element, text="".join(keys))

    def command(self, name: str, **parameters: Any) -> Any:
        """The answer to a command."""
        self._count += 1
        text = json.dumps([0, self._count, name, parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(text), text))
        _, number, error, found = self._received()
        assert number == self._count and error is None, error
        return found

    def wait(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """The value of the condition as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.05)
        return value

    def _received(self) -> Any:
        """The next message: its length, a colon, JSON."""
        length = b""
        while (letter := self._socket.recv(1)) != b":":
            assert letter, "the browser has ended"
            length += letter
        text = b""
        while len(text) < int(length):
            text += self._socket.recv(int(length) - len(text))
        return json.loads(text)
