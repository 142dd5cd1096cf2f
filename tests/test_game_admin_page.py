"""The admin's page in a real browser."""

import zipfile

import pytest
from game_admin import ServedStudy
from game_browser import until
from game_rounds import line
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


@pytest.fixture
def study(tmp_path):
    made = ServedStudy(tmp_path)
    for code, points in zip(made.codes, (line(10, 10), line(12, 14), line(30, 20)), strict=True):
        made.play(code, points)
    yield made
    made.store.close()


@pytest.fixture
def page(browser: Browser):
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    made = context.new_page()
    made.set_default_timeout(10_000)
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    yield made
    context.close()
    assert errors == []


def open_study(page: Page, study: ServedStudy, address: str) -> None:
    page.goto(f"{address}/admin#token={study.admin.token}")
    page.wait_for_selector("#images li")


def test_the_address_that_serve_prints_logs_in_and_hides_its_token(study, page):
    with study.listening() as address:
        open_study(page, study, address)
        assert page.url == f"{address}/admin"
        assert page.evaluate("document.cookie") == ""
        page.reload()
        page.wait_for_selector("#images li")
        assert page.is_hidden("#login")
        assert page.locator("#figures dd").first.text_content() == "3"
        assert page.locator("#people tr").count() == 3
        assert page.locator("#images li").count() == 4


def test_another_token_is_refused_and_the_right_one_taken(study, page):
    with study.listening() as address:
        page.goto(f"{address}/admin")
        page.wait_for_selector("#login:not([hidden])")
        assert page.is_hidden("#trouble")
        page.fill("#token", "guess")
        page.click("#login button")
        page.wait_for_selector("#trouble:not([hidden])")
        assert page.is_hidden("#study")
        page.fill("#token", study.admin.token)
        page.click("#login button")
        page.wait_for_selector("#images li")
        assert page.is_hidden("#trouble")


def test_a_person_is_excluded_with_a_reason_and_included_again(study, page):
    with study.listening() as address:
        open_study(page, study, address)
        row = page.locator("#people tr", has_text=study.codes[0])
        row.get_by_role("button").click()
        page.fill("#reason", "<b>paints</b> nothing")
        page.click("#exclude button[value=exclude]")
        row.get_by_text("excluded: <b>paints</b> nothing").wait_for()
        assert page.locator("#figures dd").first.text_content() == "2"
        assert "its person is excluded (1)" in (page.text_content("#left-out") or "")
        assert study.store.excluded()[0] == {study.codes[0]}
        row.get_by_role("button", name="Include").click()
        row.get_by_role("button", name="Exclude").wait_for()
        assert study.store.excluded()[0] == frozenset()


def test_a_cancelled_dialog_excludes_nothing(study, page):
    with study.listening() as address:
        open_study(page, study, address)
        page.locator("#images li button").first.click()
        page.click("#exclude button[formnovalidate]")
        page.locator("#images li button").first.click()
        page.keyboard.press("Escape")
        page.wait_for_selector("#exclude", state="hidden")
        assert study.store.excluded() == (frozenset(), frozenset())


def test_maps_are_drawn_and_orders_chosen(study, page):
    with study.listening() as address:
        open_study(page, study, address)
        widths = "[...document.querySelectorAll('#images img')].map((image) => image.naturalWidth)"
        until(page, lambda: page.evaluate(widths) == [64] * 4)
        page.select_option("#order", "name")
        names = ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
        until(page, lambda: page.locator("#images small").all_text_contents() == names)


def test_the_maps_are_downloaded_or_the_page_says_why_not(study, page):
    """Another process makes them, which takes a while to start."""
    with study.listening() as address:
        open_study(page, study, address)
        with page.expect_download(timeout=120_000) as made:
            page.click("#download")
        assert made.value.suggested_filename == "maps.zip"
        with zipfile.ZipFile(made.value.path()) as archive:
            assert "maps/collect.json" in archive.namelist()
        for code in study.codes:
            study.store.exclude_person(code, "paints nothing")
        page.click("#download")
        page.wait_for_selector("#trouble:not([hidden])", timeout=120_000)
        assert page.text_content("#trouble") == "none of 3 finished rounds counts: its person is excluded (3)"
        assert page.is_enabled("#download")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser, study, scheme):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    try:
        page = context.new_page()
        with study.listening() as address:
            open_study(page, study, address)
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.click("#people tr button >> nth=0")
            assert page.locator("#exclude").bounding_box()["width"] <= 390
    finally:
        context.close()
