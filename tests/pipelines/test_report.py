"""The HTML page: what is in it, and that a browser makes of it what it should."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamba_seq.pipelines import report as page
from mamba_seq.pipelines.calls import Calls
from mamba_seq.pipelines.report import About, Report
from mamba_seq.pipelines.rows import Row

GOLDEN = Path(__file__).parent / "golden"
LABELS = ["alpha", "beta", "gamma & <i>delta</i>"]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
# runs after the page's own script, clicks as a person would and notes what is shown
DRIVER = """
(() => {
  const text = (id) => document.getElementById(id).textContent;
  const cells = (row) => [...row.children].map((cell) => cell.textContent);
  const shown = () => [...document.querySelectorAll("#space .row")].map(cells);
  const seen = {errors: window.pageErrors, first: shown()[0], rendered: shown().length, tiles: text("tiles")};
  const heads = [...document.querySelectorAll("#head button")], filters = document.getElementById("filters");
  heads[1].click();
  seen.longest = shown()[0];
  heads[1].click();
  seen.shortest = shown()[0];
  heads[0].click();
  seen.byName = shown().slice(0, 3).map((row) => row[0]);
  const set = (name, value) => { filters.elements[name].value = value; filters.dispatchEvent(new Event("input")); };
  set("name", "R99");
  seen.named = text("shown");
  set("name", "");
  set("label", "2");
  seen.ofClass = [...new Set(shown().map((row) => row[2]))];
  set("share", "0.9");
  seen.sure = shown().every((row) => Number(row[3]) >= 0.9);
  set("share", "");
  set("label", "");
  set("status", "1");
  seen.unclassified = [...new Set(shown().map((row) => row[4]))];
  set("status", "");
  const scroll = document.getElementById("scroll");
  heads[0].click();
  heads[0].click();
  scroll.scrollTop = 1e9;
  scroll.onscroll();
  seen.last = shown()[shown().length - 1];
  seen.atEnd = shown().length;
  document.querySelector("#space .row").click();
  seen.detail = text("detail");
  document.querySelector('[data-count="bases"]').click();
  seen.composition = text("composition");
  seen.tracks = document.querySelectorAll("#tracks canvas").length;
  const canvas = document.querySelector("#tracks canvas");
  const pixels = canvas ? canvas.getContext("2d").getImageData(0, 0, canvas.width, 1).data : [];
  seen.painted = [...pixels].some((value) => value);
  seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
  seen.resources = performance.getEntriesByType("resource").length;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
})();
"""


def calls_of(labels: list[int], width: int = 100, share: int = 9000) -> Calls:
    calls = Calls()
    for number, label in enumerate(labels):
        calls.reserve(number * width, (number + 1) * width)
        if label >= 0:
            calls.wait()
            probabilities = np.full(3, (1 - share / 10_000) / 2)
            probabilities[label] = share / 10_000
            calls.settle(number, np.log(probabilities), width)
    return calls


def text_of(report: Report) -> str:
    return b"".join([*report.head(), *report.tail()]).decode()


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def made(records: int, long_ones: int = 20) -> Report:
    report = Report(["in.fa", "more.fa"], LABELS, About("a <model>", 100, "both strands"))
    for i in range(records):
        label, p = i % 3, 0.4 + 0.0006 * (i % 1000)
        rest = (1 - p) / 2
        probabilities = tuple(p if k == label else rest for k in range(3))
        status = "unclassified" if i % 7 == 0 else "ok"
        calls = calls_of([(i + k // 9) % 3 for k in range(40)]) if i < long_ones else calls_of([label])
        length = 4000 if i < long_ones else 100 + i % 900
        prediction = LABELS[label] if status == "ok" else None
        report.row(Row(f"r{i}", length, status, prediction, probabilities, source=i % 2, calls=calls))  # type: ignore[arg-type]
    report.row(Row("</script><b>&", 0, "empty"))
    return report


def test_page_is_one_file_without_addresses() -> None:
    text = text_of(made(30))
    assert text.startswith("<!doctype html>")
    assert not re.findall(r"(?:src|href|url|import)\s*[=(]|fetch\(|XMLHttpRequest", text)
    assert set(re.findall(r"https?://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    assert "<b>&" not in text.split("<header>")[1]
    assert "a &lt;model&gt;" in text
    parser = HTMLParser()
    parser.feed(text)


def test_embedded_rows_and_counts() -> None:
    data = data_of(text_of(made(30)))
    assert (data["total"], len(data["rows"]), data["labels"][2]) == (31, 31, LABELS[2])
    assert sum(data["records"]) + sum(data["statusRecords"]) == 31
    assert sum(n for _, n in data["lengths"]) == 30  # the empty one has no place on the axis
    name, length, status, label, share, file, top, track = data["rows"][1]
    assert (name, length, data["statuses"][status], label, share, file) == ("r1", 4000, "ok", 1, 4006, 1)
    assert top == [1, 4006, 0, 2997, 2, 2997]
    starts, ends, labels, shares = track
    assert (starts[:2], ends[-1], labels[:10], set(shares)) == ([0, 100], 4000, [1] * 9 + [2], {90})
    assert data["rows"][30] == ["</script><b>&", 0, 4, -1, -1, 0, [], 0]


def test_long_records_are_shown_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SEGMENTS_A_RECORD", 10)
    report = Report(["-"], LABELS, About("m", 100, "both strands"))
    calls = calls_of([0, 0, 0, 1, 2] * 20 + [-1] * 5)
    report.row(Row("r", 10_500, "ok", "alpha", (1.0, 0.0, 0.0), calls=calls))
    starts, ends, labels, shares = data_of(text_of(report))["rows"][0][7]
    assert starts == list(range(0, 10_500, 1100))
    assert [*starts[1:], 10_500] == ends
    assert labels == [0] * 9 + [-1]
    assert shares == [90] * 9 + [0]


def test_what_is_embedded_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_ROWS", 12)
    monkeypatch.setattr(page, "MOST_SEGMENTS", 170)
    data = data_of(text_of(made(30)))
    assert (data["total"], len(data["rows"]), data["withoutTrack"]) == (31, 12, 8)
    assert sum(row[7] != 0 for row in data["rows"]) == 4


@pytest.mark.usefixtures("fake")
def test_classify_writes_it(run: Any, tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    result = run("classify", GOLDEN / "mixed.fa", GOLDEN / "reads.fq", "--report", target)
    assert result.code == 0, result.err
    data = data_of(target.read_text())
    assert [row[0] or "NA" for row in data["rows"]] == [row[0] for row in result.rows]
    assert [row[1] for row in data["rows"]] == [int(row[1]) for row in result.rows]
    assert {row[5] for row in data["rows"]} == {0, 1}


def browse(path: Path, text: str, *options: str, size: str = "1200,900") -> str:
    """What the page is once its scripts and the driver have run."""
    assert CHROMIUM is not None
    listener = "<script>window.pageErrors = []; addEventListener('error', (e) => pageErrors.push(e.message));"
    listener += "document.addEventListener('securitypolicyviolation', (e) => pageErrors.push(e.blockedURI));</script>"
    text = text.replace("<style>", listener + "<style>", 1)
    path.write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", *options]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--window-size={size}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout


@needs_browser
def test_in_a_browser_with_10000_records(tmp_path: Path) -> None:
    dom = browse(tmp_path / "page.html", text_of(made(10_000)))
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["errors"] == []
    assert seen["resources"] == 0
    assert seen["first"] == ["r0", "4,000", "NA", "0.4000", "unclassified"]
    assert seen["rendered"] < 40  # rows are made when they come into view
    assert seen["atEnd"] < 40
    assert "10,001records" in seen["tiles"]
    assert seen["longest"][:2] == ["r0", "4,000"]
    assert seen["shortest"][:2] == ["</script><b>&", "0"]
    assert seen["byName"] == ["</script><b>&", "r0", "r1"]
    assert seen["named"] == "111 of 10,001 records"
    assert seen["ofClass"] == [LABELS[2]]
    assert seen["sure"] is True
    assert seen["unclassified"] == ["unclassified"]
    assert seen["last"][0] == "</script><b>&"
    assert "bases" in seen["detail"]
    assert "Mb" in seen["composition"]
    assert (seen["tracks"], seen["painted"], seen["wide"]) == (12, True, True)
    assert 'data-ready="true"' in dom


@needs_browser
def test_on_a_small_dark_screen(tmp_path: Path) -> None:
    dom = browse(tmp_path / "page.html", text_of(made(5)), "--blink-settings=preferredColorScheme=0", size="500,800")
    assert '"errors":[]' in dom
