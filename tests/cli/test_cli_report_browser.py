"""The report in a real browser: wide, narrow and on paper; it needs nothing but itself."""

import base64
import json
import os
import shutil

import pytest
from pages import Page

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and its chromedriver (apt-get)")
WIDTHS = {"desktop": 1280, "phone": 360}


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(cli, request, tmp_path_factory):
    """The report of a small run with something in every section but the one of ``--mode=evaluate``."""
    trained = request.getfixturevalue("_trained_digits")
    run = shutil.copytree(trained, tmp_path_factory.mktemp("browser") / "run")
    here = f"--workdir={run}"
    cli("--mode=interpolate", here).good()
    cli("--mode=likelihood", here).good()
    cli("--mode=sample", here, "--config.sampling.num_images=4", "--config.sampling.trajectory=2").good()
    return run / "report.html"


def opened(browser, report, width, **media):
    """Open the page in a window of that width; what it asked the network for, and the messages of the console."""
    features = [{"name": f"prefers-{key.replace('_', '-')}", "value": value} for key, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(report.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    return {url for url in asked if not url.startswith(("data:", "blob:"))}, browser.get_log("browser")


def test_the_report_in_a_browser(browser, report):
    expected = [a["id"] for a in Page(report.read_text()).all("section")]
    for width in WIDTHS.values():
        asked, console = opened(browser, report, width)
        assert asked == {report.as_uri()}
        assert console == []
        run = browser.execute_script
        assert run("return document.compatMode") == "CSS1Compat"
        page = "document.documentElement"
        assert width - 20 < run(f"return {page}.clientWidth") <= width
        assert run(f"return {page}.scrollWidth - {page}.clientWidth") == 0
        pictures = run("return Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        assert len(pictures) > 5
        assert min(pictures) > 0
        sections = run("return [...document.querySelectorAll('main > section')].map(s => [s.id, s.offsetHeight])")
        assert [name for name, _ in sections] == expected
        assert min(height for _, height in sections) > 50
        absent = run("return [...document.querySelectorAll('.absent')].map(p => p.parentElement.id)")
        assert absent == ["quality"]
        shapes = run("return [...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().left)")
        assert min(shapes) >= 0


def test_the_film_plays_stops_and_stands_in_a_row_on_paper(browser, report):
    shown = "return [...document.querySelectorAll('.film li')].map(l => getComputedStyle(l).display !== 'none')"
    opened(browser, report, 1280, reduced_motion="reduce")
    button = "document.querySelector('.film button')"
    assert browser.execute_script(f"return {button}.textContent") == "Play"
    assert browser.execute_script(shown) == [False, True]  # one step, and the samples
    browser.execute_script(
        "const s = document.querySelector('.film input'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    assert browser.execute_script(shown) == [True, False]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(shown) == [True, True]
    opened(browser, report, 1280, reduced_motion="no-preference")
    assert browser.execute_script(f"return {button}.textContent") == "Pause"
    browser.execute_script(f"{button}.click()")
    assert browser.execute_script(f"return {button}.textContent") == "Play"


def test_the_page_follows_the_theme_and_becomes_paper(browser, report):
    shade = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    shades = {}
    for scheme in ("light", "dark"):
        opened(browser, report, 1280, color_scheme=scheme)
        shades[scheme] = sum(browser.execute_script(shade))
    assert shades["light"] > 700 > 150 > shades["dark"]
    paper = base64.b64decode(browser.print_page())
    assert paper.startswith(b"%PDF-")
    assert len(paper) > 20_000
