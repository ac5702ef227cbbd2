"""A browser for tests of pages."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# No sandbox: tests may be run by root. The rest keeps Chromium from asking the network for things of its own.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Any]:
    """Selenium's driver of a headless Chromium that logs its console and its requests.

    Where selenium or Chromium is absent the test is skipped, saying what is missing; with CI=true it fails, unless BROWSER=none
    says that there can be none.
    """
    must = os.environ.get("CI", "").lower() == "true" and os.environ.get("BROWSER") != "none"
    refuse: Callable[[str], Any] = pytest.fail if must else pytest.skip
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        refuse("no browser to test pages in: install chromium and chromedriver (Debian: chromium, chromium-driver)")
    try:
        from selenium import webdriver
    except ModuleNotFoundError:
        refuse("no selenium to drive the browser: pip install -e '.[test,browser]' -c constraints.txt")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield running
    running.quit()
