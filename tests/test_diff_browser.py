"""The pages of a diff in a browser, as those of a report: nothing runs, nothing leaves, people can
use them. Skipped where there is no Chromium with Playwright.
"""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from pipeline.report.diff_pages import write_diff_pages
from pipeline.report.tally import compare_tables
from tests import test_report_browser as of_report
from tests.test_diff_pages import EVIL, tables  # noqa: F401 - a fixture

pytestmark = of_report.pytestmark
browser, page = of_report.browser, of_report.page
PAGES = ("index.html", "changes.html", "failures.html")


@pytest.fixture
def report(tables: tuple[Path, Path], tmp_path: Path) -> Path:  # noqa: F811
    return Path(write_diff_pages(compare_tables(*tables), tmp_path / "pages")).parent


def test_nothing_runs_and_both_tables_are_seen_side_by_side(report: Path, page: Any) -> None:
    watch = of_report.Watch(page)
    seen = ""
    for name in PAGES:
        page.goto((report / name).as_uri())
        for tile in page.locator(".photo .open").all():
            tile.hover()
            tile.click()
            seen += page.locator("#look").inner_text()
            page.keyboard.press("Escape")
        page.wait_for_load_state("networkidle")
    assert not watch.faults
    assert all(url.startswith(report.as_uri()) for url in watch.requests)
    assert EVIL in seen
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((report / "changes.html").as_uri())
    page.locator(".photo .open").first.click()
    before, now = (each.bounding_box() for each in page.locator("#look .both > div").all())
    assert before["y"] == now["y"]
    assert before["x"] + before["width"] <= now["x"]
    page.keyboard.press("Escape")
    page.locator("[data-filter]").fill("onerror")
    assert page.locator("section:visible").count() == 1, "the label with markup in it"


@of_report.in_each_look
def test_they_are_accessible_and_fit(
    report: Path, browser: Any, scheme: str, size: tuple[int, int]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    viewport = dict(zip(("width", "height"), size, strict=True))
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    for name in PAGES:
        page.goto((report / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], name
        for dialog in (False, True):
            if dialog and not page.locator(".photo .open").count():
                continue
            if dialog:
                page.locator(".photo .open").first.click()
            response = axe.run(page).response
            assert len(response["passes"]) > 10  # it looked
            found = response["violations"]
            assert not found, (name, dialog, [(each["id"], each["nodes"][:2]) for each in found])
    context.close()
