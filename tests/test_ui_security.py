"""Who may see the page, and what it never does."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import quote, unquote

import pytest

from raymsa.ui.app import guarded, names_of
from raymsa.ui.security import HEADERS, Door, known_name
from tests.ui_site import HOSTILE, Visitor, add_job, hostile_store, own_home, own_store  # noqa: F401 (fixtures)

PATHS = [
    "/",
    "/jobs",
    "/groups",
    "/jobs/x",
    "/runs/x",
    "/compare",
    "/logs/jobs/x",
    "/reports/x/y",
    "/live/",
    "/live/jobs/x",
]
PATHS += ["/static/ui.js", "/static/ui.css", "/nothing", "//evil.example/"]


def visitor(home, enter: bool = True) -> Visitor:
    return Visitor(f"sqlite:///{home}/store.db", home / "reports", enter)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", [{}, {"cookies": {"raymsa-ui-8650": "wrong"}}, {"params": {"token": "wrong"}}])
def test_every_address_needs_the_token(home, path, given) -> None:
    guest = visitor(home, enter=False)
    guest.cookies.update(given.get("cookies", {}))
    answer = guest.get(f"http://127.0.0.1:8650{path}", params=given.get("params"))
    assert answer.status_code == 401
    assert guest.door.token not in answer.text


def test_the_token_goes_from_the_address_into_a_strict_cookie_that_no_script_reads(home) -> None:
    guest = visitor(home, enter=False)
    answer = guest.get(f"/jobs?name=a%26b&token={guest.door.token}", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/jobs?name=a%26b"
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("raymsa-ui-8650=", "httponly", "samesite=strict", "path=/"))
    assert guest.get("/jobs").status_code != 401


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "/%5Cevil.example", "///evil.example/x"])
def test_the_way_in_never_leads_to_another_machine(home, path) -> None:
    guest = visitor(home, enter=False)
    answer = guest.get(f"http://127.0.0.1:8650{path}?token={guest.door.token}", follow_redirects=False)
    assert re.match(r"/[^/\\]", answer.headers["location"])


@pytest.mark.parametrize("path", ["/jobs/a%3Fb%23c", "/runs/%0D%0ASet-Cookie:x", "/jobs/%E6%83%85%25"])
def test_the_way_in_leads_to_the_page_that_was_asked_for(home, path) -> None:
    guest = visitor(home, enter=False)
    answer = guest.get(f"http://127.0.0.1:8650{path}?token={guest.door.token}", follow_redirects=False)
    assert unquote(answer.headers["location"]) == unquote(path)
    assert answer.headers["location"].partition("?")[0].isascii()
    assert not set(answer.headers["location"]) & set("?#\r\n")


def test_a_code_for_a_browser_opens_once() -> None:
    door = Door()
    code = door.code()
    assert [door.opens(code), door.opens(code), door.opens(door.token), door.opens("")] == [True, False, True, False]
    assert not door.opens("ü\udc80")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8650", "127.0.0.1.evil.example", "", "192.168.1.5:8650"]
)
def test_a_name_that_is_not_ours_is_refused_also_with_the_token(store, home, host) -> None:
    assert visitor(home).get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1", "[::1]:8650", "LOCALHOST"])
def test_this_machines_names_are_known_under_any_port(store, home, host) -> None:
    assert visitor(home).get("/", headers={"host": host}).status_code == 200


def test_listening_everywhere_knows_addresses_and_its_own_names_and_no_others() -> None:
    names = names_of("0.0.0.0")
    assert known_name("192.168.1.5:8650", names, True)
    assert known_name("[fe80::1]:8650", names, True)
    assert not known_name("evil.example:8650", names, True)
    assert known_name("my-gpu-box:8650", names_of("my-gpu-box"), True)


def test_listening_everywhere_asks_for_the_token(store, home) -> None:
    from starlette.testclient import TestClient

    site = visitor(home).site
    app = guarded(site.app(), Door(), "0.0.0.0", 8650)
    assert TestClient(app, base_url="http://192.168.1.5:8650").get("/").status_code == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_but_reading_is_answered(store, home, method) -> None:
    guest = visitor(home)
    for path in ("/", "/jobs", "/compare", "/static/ui.js"):
        assert guest.request(method, path).status_code == 405


@pytest.mark.parametrize("path", ["/", "/jobs", "/nothing", "/static/ui.js", "/jobs/zzz", "/reports/zzz/x.html"])
@pytest.mark.parametrize("enter", [True, False])
def test_every_answer_has_the_headers(store, home, path, enter) -> None:
    headers = visitor(home, enter).get(path).headers
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy


def test_a_report_gets_its_style_and_no_script(store, home) -> None:
    job_id = add_job(store)
    folder = home / "reports" / job_id
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<style>p{}</style><script>1</script>")
    (folder / "raymsa-report.json").write_text(json.dumps({"job": job_id}))
    policy = visitor(home).get(f"/reports/{job_id}/index.html").headers["content-security-policy"]
    assert "script-src" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("path", ["../../store.db", "..%2f..%2fstore.db", "%2e%2e/%2e%2e/store.db", "link.html", "%00"])
def test_nothing_outside_a_jobs_reports_is_sent(store, home, path) -> None:
    job_id = add_job(store)
    folder = home / "reports" / job_id
    folder.mkdir(parents=True)
    (folder / "link.html").symlink_to(home / "store.db")
    (folder / "raymsa-report.json").write_text(json.dumps({"job": job_id}))
    guest = visitor(home)
    request = guest.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=f"/reports/{job_id}/{path}".encode())
    answer = guest.send(request)
    assert answer.status_code == 404
    assert b"SQLite" not in answer.content


class Tags(HTMLParser):
    """What a browser would take for markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_texts_are_text_on_every_page(store, home) -> None:
    job_id = hostile_store(store)
    guest = visitor(home)
    runs = [f"{job_id}-{name}" for name in HOSTILE]
    paths = ["/", "/jobs", f"/jobs/{job_id}", *(f"/runs/{run}" for run in runs), f"/logs/jobs/{job_id}"]
    paths += [f"/logs/runs/{job_id}-title", "/compare?" + "&".join(f"run={run}" for run in runs)]
    for path in [*paths, *(f"/jobs?name={quote(text)}&owner={quote(text)}" for text in HOSTILE.values())]:
        answer = guest.get(path)
        assert answer.status_code == 200, path
        page = Tags(answer.text)
        for tag, attributes in page.tags:
            assert tag not in ("style", "img"), path
            assert tag != "b" or not attributes, path
            assert tag != "script" or attributes == {"type": "module", "src": "/static/ui.js"}, path
            assert not [name for name in attributes if name.startswith("on") or name == "style"], (
                path,
                tag,
                attributes,
            )
        assert "\x1b" not in answer.text
        assert "1337" not in page.text
    assert "<script>window.hacked = 1</script>" in Tags(guest.get(f"/jobs/{job_id}").text).text


def test_hostile_texts_are_text_in_what_is_not_found(store, home) -> None:
    for text in ("<script>x</script>", "\"'><b onmouseover=1>"):
        answer = visitor(home).get(f"/jobs/{quote(text, safe='')}")
        assert answer.status_code == 404
        assert "<script>x" not in answer.text
        assert "<b onmouseover" not in answer.text
