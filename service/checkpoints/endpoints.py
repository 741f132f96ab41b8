"""The addresses of the model hubs, from the variables that their own clients read, and which of them get a token."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, get_token

T = TypeVar("T")

ANSWER_S = 5.0
"""How long a hub may take to answer the first question, with everything in it: names, proxy, connection, TLS. A network
that drops packets would take minutes: 127 s for each address of the hub's name."""
FIRST_ANSWER_S = 15.0
"""The same where the cache has nothing to serve instead."""

_TOKEN = re.compile(r"\b(hf|ms)[_-][A-Za-z0-9-]{8,}")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
_SHORTEST_TOKEN = 8
"""What is shorter is no token, and would be found in other words."""
_PASSWORD = re.compile(r"(?<=://)[^/\s'\"]*@")
NOT_OWN = "is not the https address of the hub"
"""Why an address gets no token."""
_OWN_HOSTS = {"HF_ENDPOINT": ("huggingface.co", "hf.co"), "MODELSCOPE_ENDPOINT": ("modelscope.cn", "modelscope.ai")}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a hub, and the environment variable that sets it."""

    url: str
    variable: str

    @property
    def is_mirror(self) -> bool:
        """Whether the address belongs to another host than the hub's own, or is read by others on the way."""
        url = urlsplit(self.url)
        host = url.hostname or ""
        is_own = any(host == own or host.endswith(f".{own}") for own in _OWN_HOSTS[self.variable])
        return not is_own or url.scheme != "https"

    def __str__(self) -> str:
        return f"{hide_secrets(self.url)} ({self.variable})" if self.is_mirror else self.url


def hugging_face(url: str | None = None) -> Endpoint:
    """`url`, or the address that huggingface_hub uses: HF_ENDPOINT, where it is set."""
    return Endpoint(_complete(url or constants.ENDPOINT or "https://huggingface.co"), "HF_ENDPOINT")


def modelscope(url: str | None = None) -> Endpoint:
    """`url`, or the address in MODELSCOPE_ENDPOINT, which ModelScope's own client reads, too."""
    return Endpoint(
        _complete(url or os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"), "MODELSCOPE_ENDPOINT"
    )


def modelscope_token() -> str | None:
    """Without the line end that the file of a Secret often brings: HTTP has no such headers."""
    return os.environ.get("MODELSCOPE_API_TOKEN", "").strip() or None


def answer_within(seconds: float, ask: Callable[[], T]) -> T:
    """The result of `ask`, which runs in a thread; TimeoutError where it takes longer.

    The time-outs of the HTTP clients count for each address and each read, and not for looking up a name.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # noqa: BLE001 - raised by `result`
            answer.set_exception(error)

    Thread(target=run, name="ask-hub", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") if not answer.done() else error from None


def describe_failure(error: Exception) -> str:
    """The first line of the error in the library's own words, without secrets, with what it may be due to: the proxies
    of the environment, or a token."""
    text = str(error) if isinstance(error, TimeoutError) and str(error) else f"{type(error).__name__}: {error}"
    text = hide_secrets(text.partition("\n")[0])
    if isinstance(error, UnicodeEncodeError):
        return f"{text}; HF_TOKEN or MODELSCOPE_API_TOKEN has a character that is none of a token's"
    found = ", ".join(f"{scheme.upper()}_PROXY" for scheme in getproxies() if scheme != "no")
    is_of_proxy = "proxy" in text.lower() or isinstance(error, (ImportError, TimeoutError))
    return f"{text}; the environment names a proxy ({found})" if found and is_of_proxy else text


def hide_secrets(text: str) -> str:
    """The text without the passwords of addresses, the tokens of this machine, and what looks like one."""
    known = [os.environ.get(name, "").strip() for name in _TOKEN_VARIABLES] + [get_token() or ""]
    for token in known:
        text = text.replace(token, "***") if len(token) >= _SHORTEST_TOKEN else text
    return _PASSWORD.sub("", _TOKEN.sub("***", text))


def _complete(url: str) -> str:
    """With its scheme: `hf-mirror.com` is how people write it."""
    return (url if "://" in url else f"https://{url}").rstrip("/")
