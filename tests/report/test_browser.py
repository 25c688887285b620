"""The page in a real browser, offline."""

import shutil
import tempfile

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)


def _found(names):
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="module")
def browser():
    binary, driver = _found(BROWSERS), _found(DRIVERS)
    if not binary or not driver:
        pytest.skip("no Chromium with its driver (Debian: chromium, chromium-driver)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield started
        started.quit()


@pytest.fixture
def opened(browser, training_page):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(training_page.as_uri())
    return browser


def column(browser, table, index):
    script = "return [...document.querySelectorAll('table.sortable')[arguments[0]].tBodies[0].rows]"
    return browser.execute_script(script + ".map(row => row.cells[arguments[1]].textContent)", table, index)


def click(browser, table, index):
    script = "document.querySelectorAll('table.sortable')[arguments[0]].tHead.rows[0].cells[arguments[1]]"
    browser.execute_script(f"{script}.querySelector('button').click()", table, index)
    return browser.execute_script(f"return {script}.getAttribute('aria-sort')", table, index)


def test_no_error_and_no_request_leaves_the_page(opened):
    assert opened.get_log("browser") == []
    requests = opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [address for address in requests if not address.startswith("data:")] == []


def test_every_picture_has_a_size(opened):
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('img, svg')].map(p => { const r = p.getBoundingClientRect();"
        "return [p.tagName, r.width, r.height, p.tagName == 'IMG' ? p.naturalWidth : 1, p.alt ?? ''] })"
    )
    assert len(sizes) > 45
    assert [size for size in sizes if min(size[1:4]) < 5 and size[0] == "IMG"] == []
    assert [size for size in sizes if min(size[1:3]) < 5] == []


def test_tables_sort_when_a_heading_is_clicked(opened):
    cases = 2
    dice = [float(each) for each in column(opened, cases, 2)]
    assert dice == sorted(dice)
    assert click(opened, cases, 2) == "ascending"
    assert click(opened, cases, 2) == "descending"
    assert [float(each) for each in column(opened, cases, 2)] == sorted(dice, reverse=True)
    assert click(opened, cases, 0) == "ascending"
    names = column(opened, cases, 0)
    assert names == sorted(names)
    assert opened.execute_script("return document.querySelectorAll('[aria-sort]').length") == 1


def test_cases_without_a_number_come_last_in_either_order(opened):
    script = "document.querySelectorAll('table.sortable')[2].tBodies[0].rows[0].cells[3].setAttribute('data-none', '')"
    opened.execute_script(script)
    name = column(opened, 2, 0)[0]
    for _ in range(2):
        click(opened, 2, 3)
        assert column(opened, 2, 0)[-1] == name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_are_legible_in_light_and_dark_mode(opened, scheme):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    names = ["--card", "--text", "--soft", *(f"--series-{i}" for i in range(1, 8))]
    script = "const style = getComputedStyle(document.documentElement);"
    colours = opened.execute_script(script + "return arguments[0].map(name => style.getPropertyValue(name))", names)
    ground, text, soft, *series = (luminance(colour.strip()) for colour in colours)
    assert (ground > 0.5) == (scheme == "light")
    assert contrast(text, ground) > 7
    assert contrast(soft, ground) > 4.5
    assert min(contrast(each, ground) for each in series) > 3


def test_nothing_is_wider_than_a_phone(opened):
    opened.set_window_size(500, 900)
    too_wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.execute_script(too_wide) <= 0
    opened.set_window_size(1200, 900)


def luminance(colour):
    """Return the relative luminance of ``#rrggbb`` (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
