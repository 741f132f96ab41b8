"""The playground: its files and their headers, what it asks without a key, the setting that turns it off, and the load.

tests/clients/test_playground.py has the same page in a browser.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import AsyncIterator
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import pytest

from service.api.accounts import Key, KeyScope, hash_of
from service.api.load import LoadRoutes, quantile
from service.api.playground import WEB
from service.metrics import Metrics, new_registry
from service.settings import Security, Server
from service.tasks.registry import TASKS
from tests.contract.fakes import Service, running
from tests.fakes import FakeClock

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FILES = sorted(path.name for path in WEB.iterdir())
SCRIPTS = [path for path in sorted(WEB.iterdir()) if path.suffix == ".js"]
KEYS = {scope: Key(hash=hash_of(scope), scopes=frozenset({scope})) for scope in ("infer", "metrics", "admin")}


def bearer(scope: KeyScope) -> dict[str, str]:
    return {"Authorization": f"Bearer {scope}"}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


class Markup(HTMLParser):
    """The tags and attributes of a page, and the text of its inline scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.inline = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style"):
            self.inline += data


PAGE = Markup((WEB / "index.html").read_text(encoding="utf-8"))


async def test_a_browser_gets_the_page_under_a_strict_policy(service: Service) -> None:
    response = await service.client.get("/", headers=BROWSER)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["vary"] == "Accept"


async def test_every_file_has_its_type_and_an_etag_that_saves_the_next_transfer(service: Service) -> None:
    types = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for name in FILES:
        first = await service.client.get(f"/playground/{name}")
        assert first.status_code == 200
        assert first.headers["content-type"].partition(";")[0] == types[Path(name).suffix]
        assert first.headers["cache-control"] == "no-cache"
        again = await service.client.get(f"/playground/{name}", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e", ""])
async def test_no_other_file_is_served(service: Service, name: str) -> None:
    assert (await service.client.get(f"/playground/{name}")).status_code == 404


async def test_a_client_that_is_no_browser_gets_no_page(service: Service) -> None:
    assert (await service.client.get("/")).status_code == 404
    assert (await service.client.get("/", headers={"Accept": "application/json"})).status_code == 404


async def test_clients_of_hugging_face_still_post_to_the_root(service: Service) -> None:
    reply = await service.post("/", {"inputs": "很好吃", "parameters": {"candidate_labels": ["好评", "差评"]}})
    assert reply.status_code == 200


async def test_without_the_playground_the_root_is_as_before() -> None:
    async with running(settings=Server(playground=False)) as service:
        assert (await service.client.get("/", headers=BROWSER)).status_code == 405
        assert (await service.client.get("/playground/app.js")).status_code == 404
    async with running(settings=Server(playground=False), keys=KEYS) as service:
        assert (await service.client.get("/", headers=BROWSER)).status_code == 401
        assert (await service.client.get("/playground/app.js")).status_code == 401


async def test_with_keys_the_page_is_open_and_the_api_is_closed() -> None:
    async with running(keys=KEYS) as service:
        assert (await service.client.get("/", headers=BROWSER)).status_code == 200
        assert (await service.client.get("/playground/app.js")).status_code == 200
        about = (await service.client.get("/playground/about.json")).json()
        assert (about["needs_key"], about["docs"], about["label_sets"]) == (True, False, False)
        for path in ("/v1/models", "/v1/load", "/v1/label-sets", "/docs"):
            assert (await service.client.get(path)).status_code == 401


async def test_the_page_is_told_what_it_can_offer() -> None:
    security, settings = Security(open_docs=True), Server(protocols=("openai", "cohere"))
    async with running(keys=KEYS, security=security, settings=settings) as service:
        about = (await service.client.get("/playground/about.json")).json()
    assert about == {"needs_key": True, "docs": True, "label_sets": False, "protocols": ["openai", "cohere"]}


def test_the_page_has_no_inline_script_style_or_handler() -> None:
    assert PAGE.inline.strip() == ""
    assert [name for _, name, _ in PAGE.attributes if name == "style" or name.startswith("on")] == []


def test_the_page_names_its_files_relative_to_itself_and_all_exist() -> None:
    """So it works below the path of any proxy, and loads nothing from elsewhere."""
    links = [value for tag, name, value in PAGE.attributes if name in ("href", "src") and tag != "a"]
    assert {*FILES} - {"index.html"} == {link.removeprefix("playground/") for link in links}
    assert all(link.startswith("playground/") for link in links)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_makes_no_markup_of_text_and_asks_no_other_host(path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|\.srcdoc|\.cssText"
    )
    assert re.findall(forbidden, script) == []
    assert set(re.findall(r"https?://[^\s\"'`]+", script)) <= {"http://www.w3.org/2000/svg"}
    assert all(name.startswith("./") for name in re.findall(r"from \"(.*?)\"", script))


def test_no_snippet_can_hold_the_key() -> None:
    """The module that writes code does not import it; a placeholder stands in its place."""
    script = (WEB / "snippets.js").read_text(encoding="utf-8")
    assert 'PLACEHOLDER = "erl_..."' in script
    assert re.findall(r"import \{(.*?)\} from \"./api.js\"", script) == [" ROOT "]
    assert "sessionStorage" not in script


def test_every_word_of_the_page_is_there_in_both_languages() -> None:
    words = (WEB / "words.js").read_text(encoding="utf-8")
    table = words[words.index("const WORDS") : words.index("};")]
    pairs = re.findall(
        r'^  "?([\w-]+)"?: \[\s*"((?:[^"\\]|\\.)+)",\s*"((?:[^"\\]|\\.)+)",?\s*\],$', table, re.MULTILINE
    )
    known = {name for name, _, _ in pairs}
    assert len(known) == len(pairs) == len(re.findall(r"^  \S+: \[", table, re.MULTILINE))
    used = {value for _, name, value in PAGE.attributes if name == "data-word"}
    for path in SCRIPTS:
        used |= set(re.findall(r"\bsay\(\"([\w-]+)\"", path.read_text(encoding="utf-8")))
    assert used <= known
    assert all(
        re.search("[\u4e00-\u9fff]", chinese) for name, chinese, _ in pairs if name not in ("other", "copyFailed")
    )
    places = [
        (name, sorted(re.findall(r"\{\d\}", one)), sorted(re.findall(r"\{\d\}", two))) for name, one, two in pairs
    ]
    assert [name for name, one, two in places if one != two] == []


def test_the_page_tries_every_native_task() -> None:
    script = (WEB / "tasks.js").read_text(encoding="utf-8")
    assert set(re.findall(r'path: "v1/([\w-]+)"', script)) == set(TASKS)


def test_an_installed_package_has_the_files() -> None:
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["service"]
    for path in WEB.iterdir():
        inside = path.relative_to(root / "service").as_posix()
        assert any(fnmatch(inside, pattern) and pattern.count("/") == inside.count("/") for pattern in patterns), inside


async def test_the_load_is_for_keys_that_infer_or_administer() -> None:
    async with running(keys=KEYS) as service:
        seen = {scope: (await service.client.get("/v1/load", headers=bearer(scope))).status_code for scope in KEYS}
    assert seen == {"infer": 200, "admin": 200, "metrics": 403}


def load_of(clock: FakeClock) -> tuple[LoadRoutes, Metrics]:
    metrics = Metrics(new_registry())
    metrics.declare(["mini"], ["cpu"], list(TASKS))
    metrics.watch_queue(lambda: 12.0, lambda: 560.0, lambda: 0.5, lambda: 0.0214)
    return LoadRoutes(metrics, clock), metrics


def test_a_first_reading_has_no_rate_yet() -> None:
    routes, _ = load_of(FakeClock())
    reply = routes.reply()
    assert (reply.window_s, reply.requests_per_s, reply.p95_ms, reply.batch_rows) == (None, None, None, None)
    assert (reply.queue_rows, reply.queue_tokens, reply.queue_wait_ms) == (12, 560, 21.4)


def test_the_load_is_what_happened_between_two_readings() -> None:
    clock = FakeClock()
    routes, metrics = load_of(clock)
    metrics.request_done("classify", "mini", 200, 5.0)
    routes.reply()
    clock.now += 10
    for seconds in [0.02] * 19 + [0.3]:
        metrics.request_done("embed", "mini", 200, seconds)
    metrics.batch_computed("mini", "cpu", rows=3, failed_rows=0, tokens=90, seconds=0.1)
    metrics.batch_computed("mini", "cpu", rows=6, failed_rows=0, tokens=210, seconds=0.1)
    reply = routes.reply()
    assert (reply.window_s, reply.requests_per_s, reply.batch_rows, reply.batch_tokens) == (10.0, 2.0, 4.5, 150.0)
    assert reply.p95_ms is not None
    assert 10 <= reply.p95_ms <= 50


def test_readings_older_than_the_window_are_forgotten() -> None:
    clock = FakeClock()
    routes, metrics = load_of(clock)
    routes.reply()
    metrics.request_done("embed", "mini", 200, 0.1)
    clock.now += 3600
    assert routes.reply().window_s is None


def test_callers_at_the_same_time_share_a_reading() -> None:
    clock = FakeClock()
    routes, metrics = load_of(clock)
    routes.reply()
    clock.now += 1
    assert routes.reply().requests_per_s == 0
    metrics.request_done("embed", "mini", 200, 0.1)
    clock.now += 0.1
    assert routes.reply().requests_per_s == 0
    clock.now += 0.9
    assert routes.reply().requests_per_s == 0.5


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((0, 0, 0), None), ((100, 100, 100), 0.95), ((50, 100, 100), 1.9), ((0, 10, 100), 2.0), ((0, 100, 100), 1.95)],
)
def test_a_quantile_is_that_of_prometheus(counts: tuple[float, ...], expected: float | None) -> None:
    found = quantile(0.95, dict(zip((1.0, 2.0, float("inf")), counts, strict=True)))
    assert found == (None if expected is None else pytest.approx(expected))
