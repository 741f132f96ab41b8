"""The addresses of the model hubs, from the variables that their own clients read, and which of them get a token."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

T = TypeVar("T")

ANSWER_S = 5.0
"""How long a hub may take to answer the first question, with everything in it: names, proxy, connection, TLS. A network
that drops packets would take minutes: 127 s for each address of the hub's name."""
FIRST_ANSWER_S = 15.0
"""The same where the cache has nothing to serve instead."""

_OWN_HOSTS = {"HF_ENDPOINT": ("huggingface.co", "hf.co"), "MODELSCOPE_ENDPOINT": ("modelscope.cn", "modelscope.ai")}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a hub, and the environment variable that sets it."""

    url: str
    variable: str

    @property
    def is_mirror(self) -> bool:
        """Whether the address belongs to another host than the hub's own."""
        host = urlsplit(self.url).hostname or ""
        return not any(host == own or host.endswith(f".{own}") for own in _OWN_HOSTS[self.variable])

    def __str__(self) -> str:
        return f"{_without_password(self.url)} ({self.variable})" if self.is_mirror else self.url


def hugging_face(url: str | None = None) -> Endpoint:
    """`url`, or the address that huggingface_hub uses: HF_ENDPOINT, where it is set."""
    return Endpoint(_complete(url or constants.ENDPOINT or "https://huggingface.co"), "HF_ENDPOINT")


def modelscope(url: str | None = None) -> Endpoint:
    """`url`, or the address in MODELSCOPE_ENDPOINT, which ModelScope's own client reads, too."""
    return Endpoint(
        _complete(url or os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"), "MODELSCOPE_ENDPOINT"
    )


def modelscope_token() -> str | None:
    return os.environ.get("MODELSCOPE_API_TOKEN") or None


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
    """The error in the library's own words, with the proxies of the environment where it may be due to them."""
    text = str(error) if isinstance(error, TimeoutError) and str(error) else f"{type(error).__name__}: {error}"
    found = ", ".join(f"{scheme.upper()}_PROXY" for scheme in getproxies() if scheme != "no")
    is_of_proxy = "proxy" in text.lower() or isinstance(error, (ImportError, TimeoutError))
    return f"{text}; the environment names a proxy ({found})" if found and is_of_proxy else text


def _complete(url: str) -> str:
    """With its scheme: `hf-mirror.com` is how people write it."""
    return (url if "://" in url else f"https://{url}").rstrip("/")


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if "@" in rest.partition("/")[0] else url
