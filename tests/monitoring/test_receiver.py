"""The receiver, as a server, between requests such as Alertmanager's and stand-ins for the robots."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from monitoring.receiver.__main__ import ConfigError, main, read_config
from monitoring.receiver.message import compose
from monitoring.receiver.robots import Robot
from monitoring.receiver.server import Config, make_server
from tests.support.robots import SECRET, TOKEN, Robots, robots
from tests.support.servers import free_port

KINDS = ("dingtalk", "feishu", "wecom")
by_kind = pytest.mark.parametrize("kind", KINDS)
LABELS = {"alertname": "ErlangshenDown", "severity": "critical", "namespace": "生产", "job": "erlangshen"}


def alert(status: str = "firing", summary: str = "服务不可用", **labels: str) -> dict[str, Any]:
    return {
        "status": status,
        "labels": LABELS | labels,
        "annotations": {
            "summary": summary,
            "description": "Prometheus 无法访问任何实例。",
            "runbook_url": "https://wiki.example.com/runbooks#erlangshendown",
        },
        "startsAt": "2026-11-28T20:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z" if status == "firing" else "2026-11-28T20:30:00Z",
        "fingerprint": "f",
    }


def payload(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {"version": "4", "status": alerts[0]["status"], "receiver": "page", "alerts": list(alerts)}


@pytest.fixture
def there() -> Iterator[Robots]:
    with robots() as running:
        yield running


@contextmanager
def receiver(there: Robots, **settings: Any) -> Iterator[str]:
    """Its address; the receivers have the names of the robots."""
    chosen = {kind: Robot(kind, there.address(kind), "" if kind == "wecom" else SECRET) for kind in KINDS}
    server = make_server("127.0.0.1", 0, Config(**{"robots": chosen, "timeout_s": 5.0} | settings))
    with server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def post(url: str, content: Any, token: str = "") -> tuple[int, str]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@by_kind
def test_a_signed_message_in_chinese_is_accepted(kind: str, there: Robots) -> None:
    with receiver(there) as url:
        assert post(f"{url}/{kind}", payload(alert())) == (200, "delivered")
    [text] = there.texts()
    for part in (
        "【严重】ErlangshenDown",
        "服务不可用",
        "Prometheus 无法访问任何实例。",
        "namespace：生产",
        "2026-11-29 04:00:00",
    ):
        assert part in text
    assert "(https://wiki.example.com/runbooks#erlangshendown)" in text


@by_kind
def test_a_resolved_alert_says_when_it_ended(kind: str, there: Robots) -> None:
    with receiver(there, language="en", utc_offset_h=0) as url:
        assert post(f"{url}/{kind}", payload(alert("resolved")))[0] == 200
    [text] = there.texts()
    assert "resolved" in text
    assert "until: 2026-11-28 20:30:00" in text


@by_kind
@pytest.mark.parametrize("num_alerts", [40, 2000])
def test_a_long_list_is_cut_between_alerts_and_counted(kind: str, num_alerts: int, there: Robots) -> None:
    alerts = [alert(pod=f"pod-{number}", summary=f"第{number}个实例不可用" * 20) for number in range(num_alerts)]
    with receiver(there) as url:
        assert post(f"{url}/{kind}", payload(*alerts))[0] == 200
    [text] = there.texts()
    listed = text.count("pod：")
    assert 0 < listed < num_alerts
    assert f"另有 {num_alerts - listed} 条告警未列出" in text


@by_kind
@pytest.mark.parametrize("text", ["汉" * 50_000, '"\\\n' * 20_000])
def test_a_single_long_alert_is_cut_within_the_limit(kind: str, text: str, there: Robots) -> None:
    with receiver(there) as url:
        assert post(f"{url}/{kind}", payload(alert(summary=text), alert()))[0] == 200
    assert "（已截断）" in there.texts()[0]
    assert "另有 1 条告警未列出" in there.texts()[0]


@by_kind
@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (200, b'{"errcode": 130101, "code": 11232, "errmsg": "send too fast", "msg": "frequency limited"}'),
        (200, b"<html>login</html>"),
        (200, b"[]"),
        (200, b"{}"),
        (500, b"{}"),
        (404, b""),
        (302, b""),
    ],
)
def test_a_message_that_is_not_accepted_is_a_bad_gateway(kind: str, status: int, reply: bytes, there: Robots) -> None:
    """Alertmanager sends it again after a 5xx, which then succeeds."""
    there.replies.append((status, reply))
    with receiver(there) as url:
        assert post(f"{url}/{kind}", payload(alert()))[0] == 502
        assert there.accepted == []
        assert post(f"{url}/{kind}", payload(alert()))[0] == 200


@by_kind
def test_a_robot_that_is_not_reached_is_a_bad_gateway(kind: str, there: Robots) -> None:
    gone = Robot(kind, f"http://127.0.0.1:{free_port()}/send?key={TOKEN}", "")
    with receiver(there, robots={"gone": gone}) as url:
        assert post(f"{url}/gone", payload(alert())) == (502, "the robot was not reached: ConnectionRefusedError")


@pytest.mark.parametrize("kind", ["dingtalk", "feishu"])
def test_a_wrong_secret_is_refused_and_logged_without_secrets(
    kind: str, there: Robots, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Robot(kind, there.address(kind), "SEC-wrong")
    with caplog.at_level(logging.INFO), receiver(there, robots={"oncall": wrong}) as url:
        status, text = post(f"{url}/oncall", payload(alert()))
        assert status == 502
        assert "sign" in text
        there.replies.append(
            (200, json.dumps({"errcode": 1, "errmsg": f"bad {there.address(kind)} SEC-wrong"}).encode())
        )
        there.replies.append((500, b""))
        texts = [text, *(post(f"{url}/oncall", payload(alert()))[1] for _ in range(2))]
    for shown in (*texts, caplog.text):
        assert TOKEN not in shown
        assert "SEC-wrong" not in shown
    assert caplog.text.count("receiver=oncall not delivered") == 3


@by_kind
def test_labels_make_no_links_and_no_mentions(kind: str, there: Robots) -> None:
    with receiver(there) as url:
        assert post(f"{url}/{kind}", payload(alert(model="<at id=all></at>[x](http://evil)")))[0] == 200
    [text] = there.texts()
    assert "<at id=all>" not in text
    assert "[x](" not in text


def test_only_critical_alerts_mention_somebody(there: Robots) -> None:
    chosen = {
        "dingtalk": Robot("dingtalk", there.address("dingtalk"), SECRET, ("13800000000", "all")),
        "feishu": Robot("feishu", there.address("feishu"), SECRET, ("ou_1",)),
        "wecom": Robot("wecom", there.address("wecom"), "", ("zhang",)),
    }
    with receiver(there, robots=chosen) as url:
        for kind in KINDS:
            post(f"{url}/{kind}", payload(alert()))
            post(f"{url}/{kind}", payload(alert(severity="warning")))
    texts = there.texts()
    assert there.accepted[0][1]["at"] == {"atMobiles": ["13800000000"], "isAtAll": True}
    assert there.accepted[1][1]["at"] == {"atMobiles": [], "isAtAll": False}
    for mention, critical, warning in (("@13800000000", 0, 1), ("<at id=ou_1></at>", 2, 3), ("<@zhang>", 4, 5)):
        assert mention in texts[critical]
        assert mention not in texts[warning]


def test_what_is_no_notification_is_refused(there: Robots) -> None:
    with receiver(there, token="t") as url:
        for content in (b"", b"{", b"[]", b"{}", {"alerts": []}, {"alerts": [{}]}, {"alerts": "x"}):
            assert post(f"{url}/wecom", content, "t")[0] == 400, content
        assert post(f"{url}/none", payload(alert()), "t")[0] == 404
        assert post(f"{url}/wecom", payload(alert()))[0] == 401
        assert post(f"{url}/wecom", payload(alert()), "wrong")[0] == 401
        assert there.accepted == []
        assert post(f"{url}/wecom", payload(alert()), "t")[0] == 200
        with urllib.request.urlopen(f"{url}/-/healthy", timeout=30) as response:
            assert response.status == 200


def test_firing_alerts_come_first_and_the_worst_names_the_message() -> None:
    message = compose(payload(alert("resolved", "旧"), alert(severity="warning", summary="新")), "zh", 8)
    assert (message.level, [part[:12] for part in message.parts]) == (
        "warning",
        ["**[警告] 新**\nPr"[:12], "**[已恢复] 旧**\n"[:12]],
    )


def test_the_configuration_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "receiver.toml"
    (tmp_path / "url").write_text(f"https://oapi.dingtalk.com/robot/send?access_token={TOKEN}\n")
    (tmp_path / "secret").write_text(SECRET)
    good = '[receivers.oncall]\nkind = "dingtalk"\nurl_file = "url"\nsecret_file = "secret"\n'
    file.write_text(good)
    assert read_config(file).robots["oncall"].secret == SECRET
    for text, expected in (
        ("", r"no \[receivers"),
        (good.replace("dingtalk", "qq"), "kind is one of"),
        (good.replace('"url"', '"none"'), "none: No such file"),
        (good.replace('url_file = "url"', ""), "has to hold the address"),
        (good.replace("dingtalk", "wecom"), "no signature"),
        (good + "x = 1\n", "unknown x"),
        ('language = "fr"\n' + good, "language is one of"),
        ("x = 1\n" + good, "unknown x"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            read_config(file)
    assert main(["--config", str(file)]) == 2
    assert TOKEN not in capsys.readouterr().err


def test_the_receiver_imports_the_standard_library_only() -> None:
    code = (
        "import sys, monitoring.receiver.__main__; print({'yaml', 'service', 'prometheus_client'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
