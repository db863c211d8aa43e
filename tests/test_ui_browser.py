"""The page in a real browser: follows, sorts by keyboard, opens a report, and asks nobody else for anything."""

import itertools
import json
import time
from pathlib import Path

import pytest

from tests.jobs import wait_for
from tests.ui_site import add_job, hostile_store, opened, own_home, own_store, start_training  # noqa: F401 (fixtures)

CHROMIUM = Path("/usr/bin/chromium")
LOOKS = {"wide": {"viewport": {"width": 1280, "height": 900}}, "narrow": {"viewport": {"width": 400, "height": 800}}}

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium is installed: apt-get install chromium")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page that came in with the token; `end` fails if the browser complained, or asked another machine."""

    def __init__(self, chromium, address: str, **look) -> None:
        self.base = address.partition("?")[0]
        self.page = chromium.new_context(**look).new_page()
        self.page.set_default_timeout(60_000)
        self.said: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.goto(address)

    def go(self, path: str):
        self.page.goto(self.base + path)
        return self.page

    def end(self) -> None:
        assert self.said == []
        assert [url for url in self.asked if not url.startswith((self.base, "data:"))] == []
        assert self.page.evaluate("window.hacked") is None
        self.page.context.close()


def test_the_token_leaves_the_address_and_the_page_opens(home, store, chromium) -> None:
    add_job(store)
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        assert visit.page.url == visit.base
        assert visit.page.inner_text("h1") == "Queue"
        assert visit.page.evaluate("document.cookie") == ""
        visit.end()


def test_a_run_is_followed_while_another_process_writes_it(home, store, chromium) -> None:
    job_id = add_job(store, done=False)
    run_id = f"{job_id}-gen-2"
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        page = visit.go(f"runs/{run_id}")
        before = page.get_attribute("#curves .curve", "d")
        page.evaluate("window.stays = true")
        writer = start_training(f"sqlite:///{home}/store.db", run_id, 21, 40)
        wait_for(lambda: "40 of 40" in page.inner_text("#said"), 60)
        assert writer.wait(60) == 0
        wait_for(lambda: len(page.get_attribute("#curves .curve", "d")) > 1.5 * len(before), 60)
        assert "40 of 40" in page.inner_text("#facts")
        assert page.evaluate("window.stays")  # no page was loaded again
        visit.end()


def test_a_job_that_is_followed_gets_its_new_runs_and_keeps_what_was_chosen(home, store, chromium) -> None:
    from raymsa.store import records
    from tests.ui_site import add_run, train

    job_id = add_job(store, done=False)
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        page = visit.go(f"jobs/{job_id}")
        box = f"input[value='{job_id}-gen-2']"
        page.check(box)
        page.focus(box)
        train(store, f"{job_id}-gen-2", 21, 39, of=40)
        add_run(store, job_id, f"{job_id}-late-1", "late", 1)
        page.wait_for_selector(f"text={job_id}-late-1")
        page.wait_for_selector("text=39/40")
        assert page.is_checked(box)
        assert page.evaluate("document.activeElement.value") == f"{job_id}-gen-2"
        records.set_run_state(store, f"{job_id}-gen-2", "cancelled")
        page.wait_for_selector("#runs .s-cancelled")
        page.click("text=Compare chosen runs")
        assert page.inner_text("h1") == "Compare"
        assert f"{job_id}-gen-2" in page.inner_text("#compared")
        visit.end()


def test_a_table_is_sorted_by_keyboard_alone_and_stays_sorted(home, store, chromium) -> None:
    from tests.ui_site import train

    job_id = add_job(store, seeds=4, done=False)
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        page = visit.go(f"jobs/{job_id}")
        heading = "#table-runs th:has-text('valid MAE')"
        button = page.get_attribute(f"{heading} button", "id")
        at = int(button.rpartition("-")[2])

        def column() -> list[float]:
            cells = page.eval_on_selector_all("#runs tr", f"rows => rows.map(row => row.cells[{at}].dataset.v)")
            return [float(cell) for cell in cells if cell]

        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == button:
                break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.get_attribute(heading, "aria-sort") == "ascending"
        assert len(column()) > 4 and column() == sorted(column())
        page.keyboard.press("Space")
        assert page.get_attribute(heading, "aria-sort") == "descending"
        assert column() == sorted(column(), reverse=True)
        assert "sorted by valid MAE" in page.inner_text("#spoken")
        train(store, f"{job_id}-gen-4", 40, 40, of=40)  # its valid is another now
        page.wait_for_selector("text=40/40")
        assert column() == sorted(column(), reverse=True)
        assert page.eval_on_selector_all("[aria-sort]", "all => all.length") == 1
        visit.end()


def test_rows_are_filtered(home, store, chromium) -> None:
    job_id = add_job(store)
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        page = visit.go(f"jobs/{job_id}")
        page.fill("[data-filter=runs]", "GEN")
        assert page.eval_on_selector_all("#runs tr:not([hidden])", "rows => rows.length") == 2
        page.fill("[data-filter=results]", "disc")
        assert page.locator("#results tbody tr:visible").count() == 1
        page.press("[data-filter=runs]", "Enter")  # is no order to compare
        assert page.inner_text("h1") == "demo"
        visit.end()


def test_a_long_table_shows_its_first_rows_sorted_and_all_when_asked(home, store, chromium) -> None:
    job_id = add_job(store, variants=tuple(f"v{n:03}" for n in range(25)), seeds=10, steps=1)
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        page = visit.go(f"jobs/{job_id}")
        shown = page.locator("#runs tr:visible")
        assert shown.count() == 200
        page.click("#table-runs th:has-text('seed') button")
        page.click("#table-runs th:has-text('seed') button")
        assert shown.count() == 200
        assert shown.first.locator("td").nth(2).inner_text() == "10"
        page.fill("[data-filter=runs]", "v024")
        assert shown.count() == 10
        page.fill("[data-filter=runs]", "")
        page.click("text=Show 50 more rows")
        assert shown.count() == 250
        visit.end()


def test_a_report_opens_with_its_style_and_without_its_script(home, store, chromium) -> None:
    job_id = add_job(store)
    folder = home / "reports" / job_id
    folder.mkdir(parents=True)
    style = "<style>h1 { color: rgb(1, 2, 3) }</style>"
    (folder / "raymsa-report.json").write_text(json.dumps({"job": job_id}))
    (folder / "index.html").write_text(f"<!doctype html>{style}<h1>Findings</h1><script>window.hacked = 1</script>")
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        page = visit.go(f"jobs/{job_id}")
        page.click("a:text-is('Report')")
        assert page.inner_text("h1") == "Findings"
        assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(1, 2, 3)"
        assert len(visit.said) == 1 and "Content Security Policy" in visit.said[0]
        visit.said.clear()
        visit.end()


@pytest.mark.parametrize("look", LOOKS)
def test_hostile_texts_do_nothing_also_when_they_come_as_news(home, store, chromium, look) -> None:
    with opened(home) as (address, _):
        visit = Visit(chromium, address, **LOOKS[look])
        page = visit.go("jobs")
        job_id = hostile_store(store)
        page.wait_for_selector(f"a[href='/jobs/{job_id}']")
        for path in ("", "jobs", f"jobs/{job_id}", f"runs/{job_id}-title", f"logs/runs/{job_id}-title"):
            page = visit.go(path)
            page.wait_for_timeout(300)
            over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(over) <= 0, path
        visit.end()


def test_a_page_says_that_the_store_or_the_server_is_away(home, store, chromium, tmp_path) -> None:
    job_id = add_job(store)
    with opened(home) as (address, end):
        visit = Visit(chromium, address)
        page = visit.go(f"jobs/{job_id}")
        (home / "store.db").rename(tmp_path / "elsewhere.db")
        page.wait_for_selector("text=The store is away.")
        assert job_id in page.inner_text("#said")
        (tmp_path / "elsewhere.db").rename(home / "store.db")
        page.wait_for_selector("text=The store is away.", state="detached")
        page.goto(visit.base + "jobs")
        end()
        page.wait_for_selector("#gone:visible")
        visit.page.context.close()


def test_a_hidden_page_listens_no_more(home, store, chromium) -> None:
    from tests.ui_site import Visitor

    assert Visitor(f"sqlite:///{home}/store.db", home).get("/").status_code == 200
    with opened(home) as (address, _):
        visit = Visit(chromium, address)
        page = visit.page
        page.wait_for_timeout(300)
        hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
        page.evaluate(hide % "true" + "document.dispatchEvent(new Event('visibilitychange'))")
        add_job(store, "meanwhile", done=False)
        time.sleep(3)
        assert "meanwhile" not in page.inner_text("main")
        page.evaluate(hide % "false" + "document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_selector("text=meanwhile")
        visit.end()


def test_everything_can_be_read_without_script(home, store, chromium) -> None:
    job_id = add_job(store)
    with opened(home) as (address, _):
        visit = Visit(chromium, address, java_script_enabled=False)
        page = visit.go(f"jobs/{job_id}")
        assert "constant" in page.inner_text("#results")
        assert page.locator("#runs tr").count() == 4
        assert not page.is_visible("[data-filter=runs]")
        page = visit.go(f"runs/{job_id}-disc-1")
        assert page.locator("svg.chart").count() == 2
        visit.page.context.close()


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const node of document.querySelectorAll("main *, header *, footer")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
    const svg = node instanceof SVGElement;
    const [a, b] = [light(getComputedStyle(node)[svg ? "fill" : "color"]), light(back(node))].sort().reverse();
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([node.outerHTML.slice(0, 90), ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_landmarks_headings_and_names_are_as_they_should_be(home, store, chromium, scheme) -> None:
    job_id = add_job(store, done=False)
    failed = hostile_store(store)
    with opened(home) as (address, _):
        visit = Visit(chromium, address, color_scheme=scheme)
        for path in ("", "jobs", f"jobs/{job_id}", f"jobs/{failed}", f"runs/{job_id}-disc-1", "nothing"):
            page = visit.go(path)
            assert page.evaluate(CONTRAST) == [], path
            assert page.locator("h1").count() == 1
            for landmark in ("header", "nav", "main", "footer", "html[lang]"):
                assert page.locator(landmark).count() >= 1
            levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(one => Number(one.tagName[1]))")
            assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), path
            nameless = "all => all.filter(one => !(one.labels?.length || one.ariaLabel)).map(one => one.outerHTML)"
            assert page.eval_on_selector_all("input, select, progress, svg[role=img]", nameless) == [], path
            ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
            assert len(ids) == len(set(ids)), path
        visit.said.clear()  # the browser tells of the 404
        visit.end()


def test_motion_is_left_out_where_it_is_not_wanted(home, store, chromium) -> None:
    with opened(home) as (address, _):
        for wanted, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
            visit = Visit(chromium, address, reduced_motion=wanted)
            behaviours = visit.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior")
            assert behaviours == behaviour
            visit.end()
