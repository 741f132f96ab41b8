"""Why a child was lost, as far as its exit status tells. Knows no process."""

from __future__ import annotations

import signal

from service.host import OomKills
from service.metric_labels import LossReason

_OWN_SIGNALS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""A process that does what it must not gets these; the others come from outside."""


def reason_of(status: int, oom_kills: OomKills) -> LossReason:
    if status >= 0:
        return "exit"
    if -status in _OWN_SIGNALS:
        return "crash"
    return "oom" if status == -signal.SIGKILL and oom_kills.take() else "killed"


def epitaph(status: int, reason: LossReason) -> str:
    if reason == "oom":
        return "killed by the kernel, out of memory,"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
