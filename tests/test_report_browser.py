"""The report in a browser: nothing runs that a photo or a label brings, no request leaves the page,
and people can use it. Skipped where there is no Chromium with Playwright.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.library import Settings, label_images
from pipeline.report.write import write_report
from tests.helpers import make_photos, photo
from tests.test_report import EVIL, evil_model, evil_photos

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

# Colours differ by scheme and what fits by size: the other two pairs are soak's.
in_each_look = pytest.mark.parametrize(
    ("scheme", "size"),
    [
        ("light", (1280, 900)),
        ("dark", (390, 800)),
        pytest.param("light", (390, 800), marks=pytest.mark.soak),
        pytest.param("dark", (1280, 900), marks=pytest.mark.soak),
    ],
)
PAGES = ["index.html", "labels.html", "doubtful.html", "failures.html", "folders.html", "labels/*"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of photos and labels whose names are markup, and of a photo that is gone."""
    folder = tmp_path_factory.mktemp("evil")
    evil_photos(folder / "photos")
    make_photos(folder / "photos" / "more", 12)
    photo(77).save(folder / "photos" / "gone.jpg")
    model = evil_model(small_model, folder / "model")
    out = folder / "labels.parquet"
    label_images(Settings(paths=(folder / "photos",), out=out, model=str(model), workers=0))
    (folder / "photos" / "gone.jpg").unlink()
    write_report(out, folder / "report")
    return folder / "report"


def addresses(report: Path) -> list[str]:
    return [path.as_uri() for name in PAGES for path in sorted(report.glob(name))]


class Watch:
    """All that a page asks for, says or wants to run."""

    def __init__(self, page: Any) -> None:
        self.requests: list[str] = []
        self.faults: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: (self.faults.append("alert"), dialog.dismiss()))
        page.on("requestfailed", lambda request: self.faults.append(request.url))


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


def test_nothing_runs_and_no_request_leaves(report: Path, page: Any) -> None:
    watch = Watch(page)
    seen = ""
    for address in addresses(report):
        page.goto(address)
        for tile in page.locator(".photo .open").all()[:4]:
            tile.hover()
            tile.click()
            seen += page.locator("#look").inner_text()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Escape")
        page.wait_for_load_state("networkidle")
        seen += page.inner_text("body")
        assert page.locator("#main script, #main img[onerror], #look script").count() == 0
    assert not watch.faults
    assert watch.requests
    assert all(url.startswith(report.as_uri()) for url in watch.requests)
    assert EVIL in seen
    assert "<script>alert(1)</script>.jpg" in seen


def test_the_policy_stops_what_should_ever_get_in(report: Path, page: Any, tmp_path: Path) -> None:
    """Were a name not escaped, the page would still run nothing and ask nobody."""
    text = (report / "index.html").read_text()
    evil = (
        "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
        "<img src=https://example.com/a.png><style>body{display:none}</style>"
    )
    shutil.copytree(report, tmp_path / "copy")
    changed = tmp_path / "copy" / "index.html"
    changed.write_text(text.replace('<main id="main">', f'<main id="main">{evil}'))
    sent: list[str] = []
    page.context.route("**/*", lambda route: (sent.append(route.request.url), route.continue_()))
    page.goto(changed.as_uri())
    page.wait_for_load_state("networkidle")
    assert page.title() != "ran"
    assert not [url for url in sent if not url.startswith("file:")]
    assert page.evaluate("getComputedStyle(document.body).display") == "block"


def test_find_as_one_types(report: Path, page: Any) -> None:
    page.goto((report / "doubtful.html").as_uri())
    n_all = page.locator(".photo").count()
    page.keyboard.press("/")
    page.keyboard.type("more 0003")
    assert page.locator(".photo:visible").count() == 1
    assert page.locator(".count").inner_text() == f"1 of {n_all}"
    page.keyboard.press("Escape")
    assert page.locator(".photo:visible").count() == n_all
    page.goto((report / "failures.html").as_uri())
    page.locator("[data-filter]").fill("nothing is called so")
    assert page.locator("section:visible").count() == 0


def test_one_photo_large_by_keyboard_alone(report: Path, page: Any) -> None:
    page.goto((report / "doubtful.html").as_uri())
    first = page.locator(".photo .open").first
    first.focus()
    assert page.locator(".photo").first.locator(".peek").is_visible()
    page.keyboard.press("Enter")
    look = page.locator("#look")
    assert look.is_visible()
    before = look.locator(".at").inner_text()
    assert look.locator(".best li").count() == 5
    page.keyboard.press("ArrowRight")
    assert look.locator(".at").inner_text() != before
    page.keyboard.press("ArrowLeft")
    assert look.locator(".at").inner_text() == before
    page.keyboard.press("Escape")
    assert not look.is_visible()
    assert first.evaluate("each => each === document.activeElement")


def test_pages_can_be_read_without_script(report: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((report / "doubtful.html").as_uri())
    assert page.locator(".photo img").first.is_visible()
    assert not page.locator(".filter").is_visible()
    page.locator("a.open").first.click()
    assert page.url.endswith(".jpg")
    context.close()


@in_each_look
def test_it_is_accessible_and_fits(
    report: Path, browser: Any, scheme: str, size: tuple[int, int]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    for address in addresses(report)[:7]:
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        for dialog in (False, True):
            if dialog and not page.locator(".photo .open").count():
                continue
            if dialog:
                page.locator(".photo .open").first.click()
            response = axe.run(page).response
            assert len(response["passes"]) > 10  # it looked
            found = response["violations"]
            assert not found, (address, dialog, [(each["id"], each["nodes"][:2]) for each in found])
    context.close()
