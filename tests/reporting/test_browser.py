"""The page in headless Chromium, narrow and wide, light and dark, with scripts and without."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydiffaccel.report import main

from .chromium import BINARY, Browser, chromium
from .conftest import MakeRun

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs Chromium (Debian: apt-get install chromium)")

LONG = "a_run_with_a_very_long_name_that_does_not_end_and_does_not_break_" * 2


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as running:
        yield running


@pytest.fixture
def report(make_run: MakeRun, tmp_path: Path) -> Path:
    evaluation = {"recipe": {"seed": 0}, "results": [{"nfe": n, "kid": {"mean": 1 / n}} for n in (1, 2, 4)]}
    folders = [
        make_run("plain", evaluation=evaluation),
        make_run("paired", coupling="hungarian", grids=range(20, 200, 20)),
        make_run(LONG, coupling="knn", steps=300, finished=False, learning_rate=1e-3),
    ]
    out = tmp_path / "report.html"
    assert main([*map(str, folders), "--output", str(out)]) == 0
    return out


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_fits_and_complains_about_nothing(browser: Browser, report: Path, width: int, dark: bool) -> None:
    browser.open(report, width=width, dark=dark)
    assert browser["document.documentElement.clientWidth"] == width
    for opened in (False, True):
        browser[f"document.querySelectorAll('details').forEach(d => d.open = {str(opened).lower()})"]
        assert browser["document.documentElement.scrollWidth"] <= width
    # Nothing readable is smaller than 11 px, however narrow the page.
    sizes = (
        "[...document.querySelectorAll('.tick, td, th, p, summary')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert browser[f"Math.min(...{sizes})"] >= 11
    picture = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB"), np.float64)
    assert picture.shape[1] == width
    paper = picture[-1, 0]
    assert (paper.mean() < 60) == dark
    # Lines, text and pictures: a good part of the page is not paper, in every piece of it.
    busy = (np.abs(picture - paper).max(2) > 40).mean(1)
    assert busy.mean() > 0.02
    assert all(part.max() > 0 for part in np.array_split(busy, 20))
    assert browser.complaints() == []
    loaded = "[...document.images].map(i => i.complete && i.naturalWidth > 0)"
    assert all(browser[loaded])
    assert len(browser[loaded]) == 3 + 8 + 2


@pytest.mark.parametrize("scripts", [True, False])
def test_the_position_is_chosen_without_scripts_too(browser: Browser, report: Path, scripts: bool) -> None:
    browser.open(report, width=1400, scripts=scripts)
    seen = "[...document.querySelectorAll('.plot')].filter(p => p.offsetParent).map(p => p.className)"
    assert set(browser[seen]) == {"plot by-step"}
    for position in ("evaluations", "seconds"):
        browser[f"document.querySelector('[for=over-{position}]').click()"]
        assert set(browser[seen]) == {f"plot by-{position}"}
        assert len(browser[seen]) == 5
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [400, 1400])
def test_numbers_under_the_pointer(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width=width)
    browser["document.querySelector('.area').scrollIntoView({block: 'center'})"]
    box = browser["(r => [r.left, r.top, r.width])(document.querySelector('.area').getBoundingClientRect())"]
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] / 2, y=box[1] + 20)
    said = browser["document.querySelector('.tip').innerText"].splitlines()
    assert said[0] == "150 steps"
    assert said[1].startswith("plain 0.1")
    assert len(said) == 4
    # Each name has its piece of line before it, on the same row.
    keys = "[...document.querySelectorAll('.tip svg')].map(k => k.getBoundingClientRect())"
    inside = f"{keys}.map((k, i) => (r => k.top >= r.top && k.bottom <= r.bottom && k.width === 14)"
    assert browser[f"{inside}(document.querySelectorAll('.tip > div')[i + 1].getBoundingClientRect()))"] == [True] * 3
    assert browser["document.documentElement.scrollWidth"] <= width
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert browser["document.querySelector('.tip').hidden"]
    assert browser.complaints() == []


def test_a_picture_is_enlarged(browser: Browser, report: Path) -> None:
    browser.open(report, width=1400)
    width = "document.querySelector('.strip figure').offsetWidth"
    before = browser[width]
    browser["document.querySelector('.strip label').click()"]
    assert browser[width] > 2 * before


def test_the_browser_test_sees_errors(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='missing.png'><img src='https://example.invalid/x.png'><script>nothing()</script>")
    browser.open(bad, width=400)
    said = " ".join(browser.complaints())
    assert "nothing is not defined" in said
    assert "example.invalid" in said
