"""The page in a real browser: sorted, filtered, opened, printed, read aloud, and never asking the network."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from fewbit.rendering.comparison import compare
from fewbit.rendering.html.comparison_page import comparison_page
from fewbit.rendering.html.report_page import report_page
from local.browser import browser, chromium
from tests.fewbit.example import full_report, layer, report

HOSTILE = '"><img src=x onerror="document.title=1"></script><script>document.title=2</script>'
CLIPBOARD = "navigator.clipboard.readText()"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as started:
        yield started


@dataclass
class Reader:
    """Opens pages, and notes what a page must not do: ask for anything, or complain."""

    context: BrowserContext
    folder: Path
    asked: list[str] = field(default_factory=list)
    complained: list[str] = field(default_factory=list)

    def opens(self, html: str) -> Page:
        path = self.folder / "page.html"
        path.write_text(html, encoding="utf-8")
        page = self.context.new_page()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.complained.append(message.text))
        page.on("pageerror", lambda error: self.complained.append(str(error)))
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', event => console.error(event.violatedDirective))"
        )
        page.goto(path.as_uri())
        return page


@pytest.fixture(params=[1280, 390])
def width(request: pytest.FixtureRequest) -> int:
    wide: int = request.param
    return wide


def reading(chrome: Browser, folder: Path, **options: Any) -> Iterator[Reader]:
    context = chrome.new_context(**options)
    context.set_default_timeout(5000)
    reader = Reader(context, folder)
    yield reader
    context.close()
    assert [url for url in reader.asked if not url.startswith(("file:", "data:"))] == []
    assert reader.complained == []


@pytest.fixture
def reader(chrome: Browser, tmp_path: Path) -> Iterator[Reader]:
    yield from reading(chrome, tmp_path, viewport={"width": 1280, "height": 900})


def names(page: Page) -> list[str]:
    shown: list[str] = page.locator("tr.layer:visible > th").evaluate_all("rows => rows.map(row => row.dataset.v)")
    return shown


def column(page: Page, title: str) -> list[str]:
    number = page.locator("table.layers thead th").all_text_contents().index(title)
    cells: list[str] = page.locator("tr.layer:visible").evaluate_all(
        "(rows, number) => rows.map(row => row.cells[number].dataset.v ?? row.cells[number].textContent)", number
    )
    return cells


TITLES = ("Layer", "Requested", "Converted", "Executed", "Time", "Params", "SQNR", "Accum.", "Sensitivity", "Spared",
          "Plain", "Findings")  # fmt: skip


@pytest.mark.parametrize("title", TITLES)
def test_each_column_sorts_both_ways_and_says_so(reader: Reader, title: str) -> None:
    page = reader.opens(report_page(full_report(12)))
    head = page.locator("table.layers thead th", has=page.get_by_role("button", name=title, exact=True))
    seen = []
    for _ in range(2):
        head.get_by_role("button").click()
        said = head.get_attribute("aria-sort")
        assert page.locator(f"[aria-sort='{said}']").count() == 1
        seen.append(said)
        known = [value for value in column(page, title) if value not in ("", "—", "not run")]
        try:
            keys: list[Any] = [float(value) for value in known]
        except ValueError:
            keys = [value.lower() for value in known]
        assert keys == sorted(keys, reverse=said == "descending")
    assert sorted(map(str, seen)) == ["ascending", "descending"]


def test_what_was_not_measured_sorts_last_either_way(reader: Reader) -> None:
    page = reader.opens(report_page(full_report(12)))
    for _ in range(2):
        page.get_by_role("button", name="SQNR", exact=True).click()
        assert names(page)[-1] == "classifier"


def test_a_detail_stays_under_its_row_when_rows_move(reader: Reader) -> None:
    page = reader.opens(report_page(full_report(12)))
    row = page.locator("tr.layer", has_text="layers.1.linear1")
    row.locator("summary").click()
    page.get_by_role("button", name="Sensitivity", exact=True).click()
    assert row.locator("xpath=following-sibling::tr[1]").get_attribute("class") == "detail"
    expect(page.locator("tr.detail:visible")).to_have_count(1)
    expect(row.locator("xpath=following-sibling::tr[1]")).to_be_visible()


def test_layers_are_filtered_by_words_and_by_kind(reader: Reader) -> None:
    page = reader.opens(report_page(full_report(12)))
    search = page.get_by_role("searchbox", name="Filter layers")
    search.fill("LAYERS.1.LIN linear")
    assert names(page) == ["encoder.layers.1.linear1", "encoder.layers.1.linear2"]
    expect(page.get_by_role("status")).to_have_text("2 of 12 shown")
    search.fill("excluded-by-user")
    assert names(page) == ["classifier"]
    search.fill("aten::addmm")
    assert names(page) == ["classifier"]
    search.fill("")
    page.get_by_role("button", name="Float 1").click()
    assert names(page) == ["classifier"]
    page.get_by_role("button", name="With findings 2").click()
    assert names(page) == ["encoder.layers.0.self_attn.out_proj", "encoder.layers.0.linear2"]
    page.get_by_role("button", name="Quantized 11").click()
    assert len(names(page)) == 11
    page.get_by_role("button", name="All 12").click()
    assert len(names(page)) == 12
    expect(page.get_by_role("status")).to_have_text("")


def test_a_filtered_layer_takes_its_open_detail_along(reader: Reader) -> None:
    page = reader.opens(report_page(full_report(12)))
    page.locator("tr.layer summary").first.click()
    expect(page.locator("tr.detail:visible")).to_have_count(1)
    page.get_by_role("searchbox").fill("classifier")
    expect(page.locator("tr.detail:visible")).to_have_count(0)


@pytest.mark.parametrize("script", [True, False])
def test_a_layer_opens_to_its_details(chrome: Browser, tmp_path: Path, script: bool) -> None:
    for reader in reading(chrome, tmp_path, java_script_enabled=script):
        page = reader.opens(report_page(full_report(12)))
        expect(page.locator("tr.detail:visible")).to_have_count(0)
        row = page.locator("tr.layer", has_text="classifier")
        row.locator("summary").click()
        detail = row.locator("xpath=following-sibling::tr[1]")
        for words in (
            "The pattern 'classifier'",
            "Take the pattern out",
            '{"layers": []}',
            "Kurtosis",
            "99.99 % below",
        ):
            expect(detail).to_contain_text(words)
        expect(detail.get_by_role("img", name=re.compile("Histogram of the weights"))).to_be_visible()
        page.locator("tr.layer summary").first.click()
        expect(page.locator("tr.detail:visible").first).to_contain_text("AVX-512")


def test_all_works_from_the_keyboard(reader: Reader) -> None:
    page = reader.opens(report_page(full_report(12)))
    summary = page.locator("tr.layer summary").first
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator("tr.detail:visible")).to_have_count(1)
    page.get_by_role("button", name="SQNR", exact=True).focus()
    page.keyboard.press("Enter")
    assert page.locator("[aria-sort=descending]").inner_text() == "SQNR"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_patch_is_copied_whole(chrome: Browser, tmp_path: Path) -> None:
    for reader in reading(chrome, tmp_path, permissions=["clipboard-read", "clipboard-write"]):
        page = reader.opens(report_page(full_report(12)))
        button = page.get_by_role("button", name="Copy the patch for excluded-by-user").first
        button.click()
        expect(button).to_have_text("Copied")
        assert page.evaluate(CLIPBOARD) == '{"layers": []}'


def test_without_scripts_no_scripted_control_is_shown(chrome: Browser, tmp_path: Path) -> None:
    for reader in reading(chrome, tmp_path, java_script_enabled=False):
        page = reader.opens(report_page(full_report(12)))
        assert len(names(page)) == 12
        assert page.locator("button:visible").count() == 0
        expect(page.get_by_role("searchbox")).to_be_hidden()


CASES: dict[str, Any] = {
    "full": lambda: report_page(full_report(12)),
    "300 layers": lambda: report_page(full_report(300)),
    "one layer": lambda: report_page(full_report(1)),
    "no layer": lambda: report_page(report(layers=[], findings=[], gates=[])),
    "analyze": lambda: report_page(
        report(accuracy=None, latency=None, artifacts=[], size={"before": 9, "after": None, "ratio": None})
    ),
    "long names": lambda: report_page(report(layers=[layer("module_" * 60), layer("模型.编码器." * 20 + "层")])),
    "comparison": lambda: comparison_page(compare([full_report(12), report(), full_report(3)])),
}


@pytest.mark.parametrize("case", CASES)
def test_no_page_scrolls_sideways(chrome: Browser, tmp_path: Path, width: int, case: str) -> None:
    for reader in reading(chrome, tmp_path, viewport={"width": width, "height": 844}):
        page = reader.opens(CASES[case]())
        for summary in page.locator("tr.layer summary").all()[:3]:
            summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("case", CASES)
def test_a_screen_reader_finds_everything_by_name(reader: Reader, case: str) -> None:
    page = reader.opens(CASES[case]())
    assert page.get_by_role("main").count() == 1
    assert page.locator("h1").count() == 1
    assert page.get_attribute("html", "lang") == "en"
    assert (
        page.locator("svg:not([aria-label]), section:not([aria-labelledby]), table:not(:has(> caption))").count() == 0
    )
    assert page.locator("th:not([scope]), input:not(label input), button:not([type])").count() == 0
    levels = page.locator("h1, h2, h3").evaluate_all("headings => headings.map(heading => Number(heading.tagName[1]))")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = page.locator("[id]").evaluate_all("elements => elements.map(element => element.id)")
    assert len(ids) == len(set(ids))
    targets = page.locator("a[href^='#']").evaluate_all(
        "links => links.map(link => link.getAttribute('href').slice(1))"
    )
    assert set(targets) <= set(ids)


def test_the_layer_table_reads_as_a_table(reader: Reader) -> None:
    page = reader.opens(report_page(full_report(2)))
    table = page.get_by_role("table", name=re.compile("2 layers, in the order they run"))
    assert table.get_by_role("columnheader").count() == len(TITLES)
    assert table.get_by_role("rowheader").first.inner_text().startswith("encoder.layers.0.self_attn.in_proj")


CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, script, style")) continue;
    const [a, b] = [luminance(rgb(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...new Set(found)];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("case", ["full", "comparison"])
def test_every_text_has_enough_contrast(chrome: Browser, tmp_path: Path, scheme: str, case: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    for reader in reading(chrome, tmp_path, color_scheme=scheme, viewport={"width": 1280, "height": 900}):
        page = reader.opens(CASES[case]())
        for summary in page.locator("tr.layer summary").all():
            summary.click()
        assert page.evaluate(CONTRAST) == []


def test_print_has_the_important_details_and_no_controls(reader: Reader) -> None:
    page = reader.opens(report_page(full_report(12)))
    page.emulate_media(media="print")
    expect(page.locator("tr.detail:visible")).to_have_count(3)
    assert page.locator("button.copy:visible, .controls:visible, nav:visible").count() == 0


def test_an_uploaders_text_stays_text(reader: Reader) -> None:
    held = {
        "code": HOSTILE,
        "message": HOSTILE,
        "evidence": {HOSTILE: HOSTILE},
        "remedy": HOSTILE,
        "patch": {"a": HOSTILE},
    }
    rows = [layer(HOSTILE, HOSTILE, quantized=False, reason=held, executed=HOSTILE, op=HOSTILE)]
    findings = [held | {"severity": "error", "layer": HOSTILE}]
    hostile = full_report(3).model_dump(mode="json")
    hostile["spec"]["labels"] = {HOSTILE: HOSTILE}
    artifacts = [artifact | {"name": HOSTILE, "kind": HOSTILE} for artifact in hostile["artifacts"]]
    told = full_report(3, layers=rows, findings=findings, spec=hostile["spec"], artifacts=artifacts)
    page = reader.opens(report_page(told, base=HOSTILE))
    assert page.title().startswith("warn: ")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert names(page) == [HOSTILE]
    side = reader.opens(comparison_page(compare([told, full_report(3)])))
    assert side.locator("img").count() == 0


def test_only_layers_that_differ_can_be_shown(reader: Reader) -> None:
    page = reader.opens(CASES["comparison"]())
    rows = page.locator("table.compare-layers tbody tr:visible")
    before = rows.count()
    page.get_by_role("checkbox", name="Only layers that differ").check()
    assert 0 < rows.count() < before


def test_identical_layers_do_not_flatten_the_error_curve(reader: Reader) -> None:
    """150 dB is the cap of what is the same bit for bit: a curve with it would show nothing else."""
    rows = [layer("a"), layer("b"), layer("same", quantized=False)]
    for row, decibels in zip(rows, (40.0, 30.0, 150.0), strict=True):
        row["error"] = {"output_sqnr_db": decibels, "accumulated_sqnr_db": decibels}
    drawn = reader.opens(report_page(report(layers=rows))).locator("#depth svg")
    assert drawn.count() == 1
    assert "150" not in (drawn.text_content() or "")
    expect(reader.opens(report_page(report(layers=rows[:1]))).locator("#depth")).to_contain_text("Nothing to draw")


def test_without_a_browser_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FEWBIT_CHROMIUM", raising=False)
    with pytest.raises(RuntimeError, match="apt-get install chromium"):
        chromium()
