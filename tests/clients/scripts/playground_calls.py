"""The playground in a browser, against a server without keys, one with keys, and a proxy in front of the first."""

import atexit
import json
import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import axe_playwright_python
from playwright.sync_api import sync_playwright

URL, KEYED, KEY = os.environ["URL"], os.environ["KEYED"], os.environ["KEY"]
STRIPPED, PASSED_ON = os.environ["STRIPPED"], os.environ["PASSED_ON"]
CHROMIUM = os.environ["CHROMIUM"]
PYTHON, CLIENTS_PYTHON = os.environ["PYTHON"], os.environ["CLIENTS_PYTHON"]
"""Interpreters with httpx, and with the client libraries."""
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
TASKS = ["classify", "similarity", "answerTask", "extract", "nli", "fill-mask", "embed"]
ANSWER_MS = 120_000
MARKUP = "<img src=x onerror=\"document.title='broken'\">"

driver = sync_playwright().start()
browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
atexit.register(lambda: (browser.close(), driver.stop()))


@contextmanager
def page_of(url=URL, *, refused=False, locale="en-US", scheme="light", size=DESKTOP):
    """A page in a context of its own. The console has nothing at the end; with `refused`, nothing but the browser's
    lines about answers that are errors."""
    context = browser.new_context(locale=locale, color_scheme=scheme, viewport=size)
    page = context.new_page()
    page.set_default_timeout(ANSWER_MS)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    try:
        yield page
        expected = "Failed to load resource: the server responded with a status of "
        assert [line for line in said if not (refused and line.startswith(expected))] == []
    finally:
        context.close()


def choose(page, task):
    page.wait_for_selector("#run:enabled")
    page.locator(f"[name=task][value='{task}']").check(force=True)


def run(page):
    page.click("#run")
    page.wait_for_selector("#result .stages")


def option(page, name, value):
    if not page.locator("details.options").evaluate("node => node.open"):
        page.locator("details.options > summary").click()
    field = page.locator(f"#field-{name}")
    if field.evaluate("node => node.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)


def sent_by(page):
    """The body in the snippet for curl."""
    page.locator("[name=client][value=curl]").check(force=True)
    return json.loads(page.inner_text("#snippets code").split("-d '", 1)[1].rstrip("'").replace("'\\''", "'"))


def fact(page, name):
    return page.locator(".facts div").filter(has=page.get_by_text(name, exact=True)).locator("dd").inner_text()


def scores(page):
    return [float(text) for text in page.locator("#result .score").all_inner_texts()]


def check_every_task_answers_from_its_first_example():
    with page_of() as page:
        page.wait_for_selector("#run:enabled")
        assert page.locator("[name=task]").evaluate_all("all => all.map(one => one.value)") == TASKS
        for task in TASKS:
            choose(page, task)
            run(page)
            assert "tokenize" in page.inner_text(".stages"), task
            assert int(fact(page, "Tokens").split(",")[0]) > 0, task
            if task != "embed":
                assert all(0 <= score <= 1 for score in scores(page)), task
        assert page.locator(".vector svg").count() == 4
        assert page.locator("table td").first.inner_text() == ""


def check_every_example_of_every_task_is_answered():
    with page_of() as page:
        for task in TASKS:
            choose(page, task)
            for number in range(page.locator(".chip").count()):
                page.locator(".chip").nth(number).click()
                run(page)


def check_method_models_decision_and_tokens_are_shown():
    with page_of() as page:
        choose(page, "classify")
        run(page)
        assert page.inner_text(".verdict strong") == "物流"
        assert page.inner_text(".badge") == "Decided: 物流"
        facts = page.inner_text(".facts")
        assert "Two models together" in facts
        assert "mini + e5-small" in facts
        assert page.locator(".bars .best .name").inner_text() == "物流"
        wide = page.locator(".bars .bar span").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
        assert wide[0] > 10 * wide[1]


def check_labels_with_descriptions_and_examples_are_sent():
    with page_of() as page:
        choose(page, "classify")
        page.locator(".chip").nth(2).click()
        label = sent_by(page)["labels"][0]
        assert label == {
            "name": "财经",
            "description": "银行、股市和宏观经济",
            "examples": ["沪指收涨1%", "美联储宣布加息"],
        }
        page.get_by_role("button", name="Add a label").click()
        page.keyboard.type("国际")
        assert sent_by(page)["labels"][-1] == "国际"
        page.get_by_role("button", name="Remove label 2").click()
        assert [one if isinstance(one, str) else one["name"] for one in sent_by(page)["labels"]] == [
            "财经",
            "娱乐",
            "科技",
            "国际",
        ]
        run(page)
        assert page.locator(".bars li").count() == 4


def check_a_label_set_is_used_by_its_name():
    with page_of() as page:
        choose(page, "classify")
        page.get_by_label("Labels from").select_option("set:support")
        page.locator(".label-editor > p").get_by_text("退款 · 物流 · 发票 · 投诉").wait_for()
        assert sent_by(page) == {"inputs": "包裹三天了还没动静", "label_set": "support"}
        run(page)
        assert "support, version 1" in page.inner_text(".facts")


def check_the_labels_of_a_classifier_need_no_others():
    with page_of() as page:
        choose(page, "classify")
        page.get_by_label("Labels from").select_option("head")
        run(page)
        assert "tuned" in page.inner_text(".facts")
        assert page.locator(".bars li").count() == 2


def check_none_of_the_labels_is_said():
    with page_of() as page:
        choose(page, "classify")
        page.locator(".chip").nth(4).click()
        run(page)
        assert page.inner_text(".badge").startswith("None")
        assert page.inner_text(".verdict") == "其他"


def check_a_long_text_is_cut_or_read_in_windows():
    with page_of() as page:
        choose(page, "classify")
        page.fill("#field-text", "房间很大，早餐一般。" * 80)
        run(page)
        assert "cut to fit" in page.inner_text("#result")
        option(page, "truncation", "window")
        run(page)
        assert "cut to fit" not in page.inner_text("#result")
        assert " of 2, characters " in page.inner_text(".facts")
        assert page.inner_text("#result blockquote").startswith("房间")


def check_a_span_is_marked_in_its_passage():
    with page_of() as page:
        choose(page, "extract")
        page.fill("#field-passage", "😀小王七点半去上班。")
        page.fill("#field-question", "几点？")
        run(page)
        assert page.inner_text("mark") == page.inner_text(".verdict strong")
        assert page.inner_text(".passage") == "😀小王七点半去上班。"


def check_text_that_is_markup_stays_text():
    with page_of() as page:
        choose(page, "classify")
        page.fill("#field-text", MARKUP)
        page.get_by_label("Label 1", exact=True).fill(MARKUP)
        run(page)
        assert page.locator("main img").count() == 0
        assert MARKUP in page.locator(".bars .name").all_inner_texts()
        assert page.title() == "Erlangshen Service"
        choose(page, "embed")
        page.fill("#field-texts", MARKUP)
        run(page)
        assert page.inner_text("figcaption") == MARKUP


def check_an_error_marks_its_field_and_says_the_way_out():
    with page_of(refused=True) as page:
        choose(page, "classify")
        page.fill("#field-text", " ")
        page.click("#run")
        page.wait_for_selector("#field-text[aria-invalid=true]")
        assert page.evaluate("document.activeElement.id") == "field-text"
        assert page.inner_text("#problem-text") == "inputs[0].text: must not be empty"
        assert "Change what is marked" in page.inner_text("[role=alert]:visible")
        page.fill("#field-text", "好吃")
        run(page)
        assert page.locator("[aria-invalid]").count() == 0
        assert not page.is_visible("#notice")


def check_an_error_in_an_option_opens_it():
    with page_of(refused=True) as page:
        choose(page, "classify")
        option(page, "min_score", "2")
        page.locator("details.options > summary").click()
        page.click("#run")
        page.wait_for_selector("#field-min_score[aria-invalid=true]:visible")
        assert page.evaluate("document.activeElement.id") == "field-min_score"


def check_an_error_of_a_label_marks_its_row():
    with page_of(refused=True) as page:
        choose(page, "classify")
        page.get_by_label("Label 3", exact=True).fill("😀")
        page.get_by_label("Label 4", exact=True).fill("😀")
        page.click("#run")
        page.wait_for_selector(".labels [aria-invalid=true]")


def check_an_answer_of_something_before_the_server_is_said():
    with page_of(refused=True) as page:
        choose(page, "nli")
        page.route("**/v1/nli", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
        page.click("#run")
        page.wait_for_selector("#notice:visible")
        assert "Something before the server" in page.inner_text("#notice")
        page.unroute("**/v1/nli")
        page.get_by_role("button", name="Try again").click()
        page.wait_for_selector("#result .stages")


def check_a_key_is_asked_for_and_stays_out_of_address_and_code():
    with page_of(KEYED, refused=True) as page:
        dialog = page.get_by_role("dialog", name="This server asks for an API key")
        dialog.wait_for()
        page.keyboard.type("erl_wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-why:visible")
        assert "does not know this key" in page.inner_text("#key-why")
        dialog.get_by_label("API key").fill(KEY)
        dialog.get_by_role("button", name="Use this key").click()
        page.wait_for_selector("#run:enabled")
        run(page)
        for client in page.locator("[name=client]").all():
            client.check(force=True)
            assert "erl_..." in page.inner_text("#snippets code")
        assert KEY not in page.content() + page.url
        assert KEY not in str(page.evaluate("[...document.querySelectorAll('input')].map(one => one.value)"))
        assert page.context.cookies() == []
        assert page.evaluate("Object.values(localStorage).concat(Object.values(sessionStorage))") == [KEY]
        page.reload()
        page.wait_for_selector("#run:enabled")
        page.get_by_role("button", name="Key", exact=True).click()
        page.get_by_role("button", name="Forget the key").click()
        page.click("#run")
        dialog.wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Enter a key").click()
        dialog.wait_for()


def check_the_language_is_that_of_the_browser_and_can_be_switched():
    with page_of(locale="zh-CN") as page:
        page.wait_for_selector("#run:enabled")
        assert page.get_attribute("html", "lang") == "zh-CN"
        assert page.inner_text("#run") == "运行"
        choose(page, "nli")
        page.fill("#field-hypothesis", "有人在唱歌。")
        run(page)
        assert page.locator(".bars .name").all_inner_texts().count("蕴含") == 1
        page.get_by_role("button", name="English").click()
        assert page.get_attribute("html", "lang") == "en"
        assert page.inner_text("#run") == "Run"
        assert "entailment" in page.inner_text("#result")
        assert page.input_value("#field-hypothesis") == "有人在唱歌。"
        page.reload()
        page.wait_for_selector("#run:enabled")
        assert page.inner_text("#run") == "Run"


def check_the_keyboard_alone_is_enough():
    with page_of() as page:
        page.wait_for_selector("#run:enabled")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.locator("[name=task][value=classify]").focus()
        page.keyboard.press("ArrowRight")
        assert page.is_checked("[name=task][value=similarity]")
        page.keyboard.press("ArrowLeft")
        page.get_by_label("Label 4", exact=True).focus()
        page.keyboard.press("Enter")
        page.keyboard.type("咨询")
        assert page.input_value(".labels li:nth-child(5) input") == "咨询"
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#result .stages")


def check_a_slow_network_shows_progress_and_can_be_cancelled():
    with page_of() as page:
        choose(page, "nli")
        slow = page.context.new_cdp_session(page)
        limits = {"offline": False, "latency": 60_000, "downloadThroughput": -1, "uploadThroughput": -1}
        slow.send("Network.enable")
        slow.send("Network.emulateNetworkConditions", limits)
        page.click("#run")
        page.wait_for_selector("#progress:visible")
        assert page.get_attribute("#answer", "aria-busy") == "true"
        assert page.inner_text("#status") == "Computing…"
        page.locator("#run").filter(has_text=re.compile(r"\d s$")).wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.wait_for_selector("#run:enabled")
        assert page.inner_text("#status") == "Cancelled."
        assert not page.is_visible("#progress")


def check_the_load_is_shown():
    with page_of() as page:
        choose(page, "nli")
        run(page)
        page.locator(".figures dd").nth(1).filter(has_text=re.compile("[1-9]")).wait_for()
        assert "Last " in page.inner_text("#load")


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_MS / 1000)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def check_every_snippet_runs_as_it_stands():
    """What curl and httpx print has the scores of the page; the client libraries print something. Rows in another batch
    may differ in the third digit."""
    interpreters = {"httpx": PYTHON}
    with page_of() as page, tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            choose(page, task)
            if task == "classify":
                page.fill("#field-text", 'it\'s "好吃" \\ $HOME')
            run(page)
            shown = scores(page)
            for client in page.locator("[name=client]").all():
                client.check(force=True)
                name, code = client.input_value(), page.inner_text("#snippets code")
                script = Path(folder) / "snippet"
                script.write_text(code, encoding="utf-8")
                if name == "curl":
                    printed = output_of(["bash", "-c", code.replace("curl ", "curl --silent --fail ", 1)])
                else:
                    printed = output_of([interpreters.get(name, CLIENTS_PYTHON), str(script)])
                if name in ("curl", "httpx"):
                    found = [float(number) for number in re.findall(r"\d+\.\d+", printed)]
                    assert all(min(abs(one - score) for one in found) < 0.01 for score in shown), (task, printed)
                assert printed.strip(), (task, name)


def check_the_page_works_below_a_path():
    for url in (STRIPPED, PASSED_ON):
        with page_of(url) as page:
            choose(page, "classify")
            run(page)
            assert f"{url}v1/classify" in page.inner_text("#snippets code")
        with page_of(url.rstrip("/")) as page:
            page.wait_for_selector("#run:enabled")
            assert page.url == url


def check_the_docs_work_below_a_path():
    for url in (STRIPPED, PASSED_ON):
        with page_of(f"{url}docs") as page:
            page.wait_for_selector(".opblock")
            page.locator("#operations-operations-livez_livez_get .opblock-summary-control").click()
            page.get_by_role("button", name="Try it out").click()
            page.get_by_role("button", name="Execute").click()
            page.wait_for_selector(".live-responses-table .response-col_status")
            assert page.inner_text(".request-url pre") == f"{url}livez"
            assert page.inner_text(".live-responses-table .response .response-col_status").startswith("200")


def violations(page):
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")["violations"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


def settle(page):
    page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")


def check_axe_finds_nothing_and_no_width_overflows():
    for size in (PHONE, DESKTOP):
        for scheme in ("light", "dark"):
            with page_of(refused=True, size=size, scheme=scheme) as page:
                for task in TASKS:
                    choose(page, task)
                    run(page)
                    settle(page)
                    assert violations(page) == [], (size, scheme, task)
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (size, task)
                choose(page, "classify")
                page.locator(".chip").nth(2).click()
                page.locator("details.options > summary").click()
                page.fill("#field-text", "")
                page.click("#run")
                page.wait_for_selector("[aria-invalid=true]")
                assert violations(page) == [], (size, scheme, "error")
            with page_of(KEYED, size=size, scheme=scheme, locale="zh-CN") as page:
                page.wait_for_selector("dialog[open]")
                assert violations(page) == [], (size, scheme, "key")
    with page_of(size={"width": 320, "height": 640}) as page:
        for task in TASKS:
            choose(page, task)
            run(page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), task
