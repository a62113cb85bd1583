"""The pictures of README.md: a heat map of a run, and the top of its report in a browser.

    python docs/pictures.py runs/demo

writes docs/heatmap.png and docs/report.png. The second needs chromium, chromedriver and selenium.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

import speechsim_jax as ss

DOCS = Path(__file__).parent
MEASURE = "lincka"


def write_heatmap(result: ss.SimilarityResult) -> None:
    """All layers of all models against all."""
    figure = result.plot(MEASURE, width=5)
    figure.savefig(DOCS / "heatmap.png", dpi=160)


def write_screenshot(page: Path) -> None:
    """What one sees first, in 64 colours."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium") or shutil.which("google-chrome"))
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        "--window-size=1280,1000",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.get(page.resolve().as_uri())
        WebDriverWait(driver, 30).until(
            lambda page: page.execute_script("return document.body.dataset.ready")
        )
        picture = Image.open(BytesIO(driver.get_screenshot_as_png()))
    finally:
        driver.quit()
    picture.convert("RGB").quantize(64).save(DOCS / "report.png", optimize=True)


def main(run: Path) -> None:
    """Draw both from a workdir."""
    write_heatmap(ss.SimilarityResult.load(run / "result.nc"))
    write_screenshot(run / "report.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
