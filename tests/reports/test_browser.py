"""The page in a real browser, from file://: it opens without a word on the console, fetches nothing, and its controls work."""

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from run_folders import translated

from percepta.reports import Words, heat_map, write_report

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright) to drive a browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or chrome on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def page(browser, make_run, tmp_path, request) -> Iterator:
    """Two runs whose grids have two colours, at the width asked for; said and fetched are checked after the test."""
    width, theme = getattr(request, "param", (1440, "light"))
    evaluated = {"fid": {"value": 1.5, "space": "clip", "contaminated": True}, "kid": {"value": 0.1, "std": 0.01}}
    runs = [
        make_run("a", steps=80, colour="red", evaluated=evaluated),
        make_run("b", steps=80, colour="blue", evaluated={"fid": 3.0}),
    ]
    out = write_report(runs, tmp_path / "report.html").out
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, has_touch=width < 500)
    opened = context.new_page()
    said, fetched = [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda wanted: fetched.append(wanted.url))
    opened.goto(out.as_uri())
    yield opened
    assert said == []
    assert [url for url in fetched if not url.startswith("data:")] == [out.as_uri()]
    context.close()


def colour(page, share: float) -> str:
    """red or blue: what the picture in the comparison shows at a share of its width, at a third of its height."""
    import io

    from PIL import Image

    shot = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    left = int(shot.width * share)
    part = shot.crop((left - 4, shot.height // 4, left + 4, shot.height // 3)).resize((1, 1), Image.Resampling.BOX)
    red, _, blue = part.getpixel((0, 0))
    return "red" if red > blue else "blue"


SIZES = [(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark")]


@pytest.mark.parametrize("page", SIZES, indirect=True, ids=str)
def test_it_opens_and_fits_the_screen(page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".plot svg path.line").count() >= 6
    boxes = [plot.bounding_box() for plot in page.locator(".plot").all()]
    width = page.viewport_size["width"]
    assert all(box["width"] >= 240 and box["x"] + box["width"] <= width for box in boxes)
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, td, dd, li, text')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    page.evaluate("document.querySelectorAll('img[src]').forEach(i => { if (!i.complete || !i.naturalWidth) throw Error(i.alt); })")


def test_the_comparison_follows_the_slider(page) -> None:
    assert (colour(page, 0.3), colour(page, 0.7)) == ("red", "blue")
    page.locator("#wipe").fill("90")
    assert (colour(page, 0.3), colour(page, 0.7)) == ("red", "red")
    page.locator("#wipe").focus()
    page.keyboard.press("Home")
    assert (colour(page, 0.3), colour(page, 0.7)) == ("blue", "blue")
    page.keyboard.press("ArrowRight")
    assert page.locator("#wipe").input_value() == "1"


def test_the_comparison_can_be_dragged(page) -> None:
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 60, steps=4)
    page.mouse.up()
    assert abs(int(page.locator("#wipe").input_value()) - 80) <= 1
    assert colour(page, 0.7) == "red"
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 60)
    assert abs(int(page.locator("#wipe").input_value()) - 80) <= 1, "a mouse that holds nothing moves nothing"


@pytest.mark.parametrize("page", [(390, "light")], indirect=True, ids=str)
def test_the_comparison_answers_a_finger(page) -> None:
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + 40)
    assert abs(int(page.locator("#wipe").input_value()) - 25) <= 1


def test_the_steps_can_be_scrubbed(page) -> None:
    shown = "[...document.querySelectorAll('[data-grids] img:not([hidden])')].map(i => i.dataset.step)"
    assert page.evaluate(shown) == ["40", "40"]
    page.locator("#scrub").focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(shown) == ["20", "20"]
    assert page.locator("#scrubbed").inner_text() == "20" and page.locator("#scrub").get_attribute("aria-valuetext") == "step 20"


@pytest.mark.parametrize("page", [(390, "dark")], indirect=True, ids=str)
def test_the_section_being_read_is_in_sight_in_the_bar(page) -> None:
    page.locator("#repeat").scroll_into_view_if_needed()
    page.evaluate("scrollTo({top: document.body.scrollHeight, behavior: 'instant'})")
    here = page.locator("nav a[aria-current]")
    playwright.expect(here).to_have_text("Repeat")
    box = here.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_a_figure_stays_readable_on_a_phone(browser, make_run, tmp_path) -> None:
    root = make_run("figured")
    heat_map(root / "figures", "affinity", np.eye(4), Words("Affinity", "Of four.", "ones on the diagonal"))
    narrow = browser.new_page(viewport={"width": 390, "height": 900})
    narrow.goto(write_report([root], tmp_path / "f.html").out.as_uri())
    frame = narrow.locator(".panel .frame")
    assert narrow.locator(".panel img").bounding_box()["width"] >= 480
    assert frame.bounding_box()["width"] <= 390 and frame.get_attribute("tabindex") == "0", (
        "it scrolls in its frame, by keys as well"
    )
    assert narrow.evaluate("document.documentElement.scrollWidth <= innerWidth")
    narrow.close()


def test_the_focus_can_be_seen_and_motion_reduced(page) -> None:
    for name in ("#scrub", "#wipe", "#scale", "#theme", ".plot >> nth=0", "summary >> nth=0"):
        page.locator(name).focus()
        page.keyboard.press("Shift")
        assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2, name
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(behaviour) == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(behaviour) == "smooth"


def test_other_seeds_are_said(browser, make_run, tmp_path) -> None:
    out = write_report([make_run("a", seed=0), make_run("b", seed=1)], tmp_path / "r.html").out
    page = browser.new_page()
    page.goto(out.as_uri())
    assert page.locator("#unlike").inner_text() == "Places do not match, these were drawn from other seeds: seed 0 and 1."
    page.locator("#right").select_option(label="a, step 20")
    assert page.locator("#unlike").is_hidden()
    page.close()


def test_curves_answer_their_controls(page) -> None:
    path = "document.querySelector('.chart[data-smooth] .s0 path.line:not(.raw)').getAttribute('d')"
    seen = [page.evaluate(path)]
    page.locator("#scale").select_option("log")
    seen.append(page.evaluate(path))
    page.locator("#smooth").fill("0")
    seen.append(page.evaluate(path))
    assert len(set(seen)) == 3
    count = page.locator(".chart[data-smooth] path.line").count()
    page.locator(".legend button").first.click()
    assert page.locator(".legend button").first.get_attribute("aria-pressed") == "false"
    assert page.locator(".chart[data-smooth] path.line").count() < count
    page.locator("#axis").select_option("images")
    told = page.locator(".chart[data-smooth] svg").first.text_content()
    assert "1000" in told and "images" in told
    page.locator("#axis").select_option("1")
    assert "step" in page.locator(".chart[data-smooth] svg").first.text_content()


def test_values_are_read_with_pointer_and_keys(page) -> None:
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
    assert plot.locator(".tip").inner_text().split("\n")[0].startswith("step 80")
    plot.focus()
    page.keyboard.press("Home")
    assert page.locator("#told").text_content() == "step 2. a: 0.5. b: 0.5"
    page.keyboard.press("ArrowRight")
    assert page.locator("#told").text_content().startswith("step 4. ")
    page.keyboard.press("Escape")
    assert plot.locator(".tip").is_hidden()


def test_the_theme_can_be_chosen(page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = [page.evaluate(ground)]
    for _ in range(3):
        page.locator("#theme").click()
        seen.append(page.evaluate(ground))
    assert seen[0] == seen[1] == seen[3] != seen[2]


def test_it_prints(page) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("nav").is_hidden() and page.locator("#compare").is_hidden()
    assert page.locator("details[open]").count() == page.locator("details").count() > 3
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_numbers_and_pictures_need_no_script(browser, make_run, tmp_path) -> None:
    out = write_report([make_run(evaluated={"fid": 2.5})], tmp_path / "r.html").out
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(out.as_uri())
    text = page.locator("body").inner_text()
    assert "2.500" in text and "need JavaScript" in text and "0.5 → 0.025" in text
    assert page.locator(".grid img").last.is_visible()
    context.close()


@pytest.fixture
def translators(browser, make_translator, tmp_path, request) -> Iterator:
    """Two translators of the same images, and one of others; their curves have players."""
    width, theme = getattr(request, "param", (1440, "light"))
    roots = [
        make_translator("a", rows=6),
        make_translator("b", rows=6, columns=("image", "translation", "back")),
        make_translator("c", seed=9),
    ]
    (roots[0] / "evaluation").mkdir()
    (roots[0] / "evaluation" / "evaluation.json").write_text(json.dumps(translated()))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(write_report(roots, tmp_path / "t.html").out.as_uri())
    yield opened
    assert said == []
    context.close()


@pytest.mark.parametrize("translators", SIZES, indirect=True, ids=str)
def test_translations_fit_the_screen(translators) -> None:
    assert translators.evaluate("document.documentElement.scrollWidth <= innerWidth")
    width = translators.viewport_size["width"]
    boxes = [strip.bounding_box() for strip in translators.locator(".strip .frame:visible").all()]
    assert len(boxes) == 2 * 3 + 2 * 2, "source and two runs, source and one run, both ways"
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] >= 300 for box in boxes)
    assert all(plot.bounding_box()["width"] >= 240 for plot in translators.locator(".plot").all())
    assert translators.locator(".way details[open]").count() == 0
    translators.locator(".way summary").first.press("Enter")
    assert translators.locator(".way .strip .frame:visible").count() == len(boxes) + 3, "attention of a, and the way back of both"


def test_every_strip_follows_the_steps_but_the_source(translators) -> None:
    shown = "[...document.querySelectorAll('.strip[data-grids] img:not([hidden])')].map(i => i.dataset.step)"
    assert set(translators.evaluate(shown)) == {"40"}
    translators.locator("#scrub").focus()
    translators.keyboard.press("ArrowLeft")
    assert set(translators.evaluate(shown)) == {"20"}
    assert translators.locator(".strip .at").first.inner_text() == "step 20"
    assert translators.locator(".way >> nth=0 >> .strip >> nth=0 >> img").is_visible()


def test_translations_of_the_same_images_are_laid_over_each_other(translators) -> None:
    names = "[...document.querySelectorAll('#left, #right')].map(s => s.selectedOptions[0].text)"
    assert translators.evaluate(names) == ["a, A → B, step 40", "b, A → B, step 40"]
    assert translators.locator("#unlike").is_hidden()
    translators.locator("#right").select_option(label="c, A → B, step 40")
    assert translators.locator("#unlike").inner_text() == "Places do not match: these are made of other images."
    translators.locator("#right").select_option(label="a, B → A, step 20")
    assert translators.locator("#unlike").is_visible()


def test_a_curve_that_spans_much_is_logarithmic_unless_asked_otherwise(translators) -> None:
    logarithmic = "[...document.querySelectorAll('.chart')].filter(f => f.textContent.includes('logarithmic')).map(f => f.querySelector('strong').textContent)"
    assert translators.evaluate(logarithmic) == ["There and back"]
    translators.locator("#scale").select_option("linear")
    assert translators.evaluate(logarithmic) == []
    translators.locator("#scale").select_option("log")
    assert len(translators.evaluate(logarithmic)) > 10
