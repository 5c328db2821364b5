"""The report in a real browser, which is where a page is right or wrong."""

import html
import json
import re
import shutil
import subprocess

import pytest

from flow_grpo.training.report.page import alarms, flat, read_run, summary, write_report
from tests.training.report.fake_run import HOSTILE, make_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: apt-get install chromium, then run these again"
)
# Drives the page as a reader's keyboard would, and leaves what it saw in the document for --dump-dom.
DRIVER = """<script>
const slider = document.querySelector("input[type=range]"), choice = document.querySelector(".controls select");
const sources = () => [...document.querySelectorAll(".tiles img")].map(image => image.src.length + image.src.slice(-40));
const seen = {epochs: Number(slider.max) + 1, charts: document.querySelectorAll("#charts svg").length,
  lines: document.querySelectorAll("#charts polyline").length, last: sources(), title: document.title};
slider.value = 0; slider.dispatchEvent(new Event("input")); seen.first = sources();
choice.value = "ocr_map"; choice.dispatchEvent(new Event("input")); seen.map = sources();
document.querySelector(".legend button").click();
seen.fewer = document.querySelectorAll("#charts polyline").length;
seen.repeated = [...document.querySelectorAll("#charts svg")].map(svg => [...svg.querySelectorAll("text[text-anchor=end]")]
  .map(text => text.textContent)).filter(labels => new Set(labels).size < labels.length);
seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
seen.captions = [...document.querySelectorAll(".tiles figcaption")].map(caption => caption.firstChild.textContent);
const made = document.createElement("pre"); made.id = "seen"; made.textContent = JSON.stringify(seen);
document.body.append(made);
</script>"""


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "fake-run")


def in_browser(page, width):
    """What the driver saw on the page, in a window of that width."""

    page.write_text(page.read_text(encoding="utf-8").replace("</body>", DRIVER + "</body>"), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    dom = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True).stdout
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1]))


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_slider_maps_and_curves_work_in_a_browser(run, width):
    write_report(run / "report.html", [read_run(run)])
    seen = in_browser(run / "report.html", width)
    assert seen["epochs"] == 3 and seen["charts"] >= 4
    assert seen["fewer"] == seen["lines"] - 1
    assert len(seen["last"]) == 2 and seen["first"] != seen["last"] and seen["map"] != seen["first"]
    assert not seen["wide"] and seen["repeated"] == []


@in_a_browser
def test_a_prompt_that_holds_markup_is_shown_as_text(run):
    write_report(run / "report.html", [read_run(run)])
    seen = in_browser(run / "report.html", 1280)
    assert seen["title"] == "fake-run" and seen["captions"][0] == HOSTILE


def test_the_page_needs_nothing_but_itself(run):
    write_report(run / "report.html", [read_run(run)])
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "<img src=x" not in text and "default-src 'none'" in text


def test_evaluations_alarms_and_changes_are_told(run, tmp_path):
    data = read_run(run, defaults={"name": "base", "seed": 1, "train": {"beta": 0.04, "learning_rate": 3e-4}})
    assert data.changes == {"name": "fake", "train.beta": 0.0}
    assert summary(data) == [
        ("eval/reward", 0.5, pytest.approx(0.9)),
        ("eval/ocr_map/exact", 0.2, pytest.approx(0.6)),
        ("eval/gold/ocr2", 0.4, 0.4),
    ]
    assert alarms(data.rows) == [("alarm/edge_density", 2)]
    write_report(tmp_path / "page.html", [data])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "alarm/edge_density</b> since epoch 2" in text and "train.beta" in text


def test_several_runs_share_a_page_and_seeds_share_a_line(tmp_path):
    runs = [read_run(make_run(tmp_path / f"run-{seed}", seed=seed)) for seed in (1, 2)]
    write_report(tmp_path / "page.html", runs)
    assert "(2 seeds)" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_runs_of_one_name_with_other_values_are_lines_of_their_own(tmp_path):
    rates = {f"run-{rate}": {"train": {"beta": 0.0, "learning_rate": rate}} for rate in (1e-4, 1e-3)}
    runs = [read_run(make_run(tmp_path / name, changes=changes)) for name, changes in rates.items()]
    write_report(tmp_path / "page.html", runs)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "seeds)" not in text and "fake (learning_rate=0.0001)" in text and "fake (learning_rate=0.001)" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no metrics.jsonl"):
        read_run(tmp_path)


def test_nested_fields_become_dotted_names():
    assert flat({"train": {"beta": 0}, "rewards": {}, "seed": 1}) == {"train.beta": 0, "rewards": {}, "seed": 1}
