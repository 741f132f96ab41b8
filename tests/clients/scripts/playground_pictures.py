"""Pictures of the playground: a classification in English and light on a desktop, in Chinese and dark likewise."""

import os
import re
from pathlib import Path

from playwright.sync_api import sync_playwright

WAIT_MS = 120_000
PICTURES = {"playground.png": ("en-US", "light"), "playground.zh-CN.png": ("zh-CN", "dark")}
SIZE = {"width": 1120, "height": 960}

with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox", "--disable-gpu"])
    for name, (locale, scheme) in PICTURES.items():
        page = browser.new_page(locale=locale, color_scheme=scheme, viewport=SIZE)
        page.set_default_timeout(WAIT_MS)
        page.goto(os.environ["URL"])
        page.wait_for_selector("#run:enabled")
        for _ in range(3):  # the first answer includes the vectors of the labels
            page.click("#run")
            page.wait_for_selector("#result .stages")
        page.locator(".figures dd").nth(1).filter(has_text=re.compile("[1-9]")).wait_for()
        page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.screenshot(path=Path(os.environ["IMAGES"]) / name)
        page.close()
    browser.close()
