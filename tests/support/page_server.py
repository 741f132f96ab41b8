"""Starts a server for the blocks of a page, in the background, in place of their server before.

`tests.support.pages` calls it with the flags of `python -m service serve` in a block, or with `receiver` and those of
`python -m monitoring.receiver`, and names the port and the file for the process id.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.support.pages import stop_server
from tests.support.servers import POLL_S, START_S


def main() -> None:
    port, pid_file = os.environ["PAGE_PORT"], Path(os.environ["PAGE_PID_FILE"])
    module, ready, flags = ["service", "serve"], "/readyz", sys.argv[1:]
    if flags[:1] == ["receiver"]:
        module, ready, flags = ["monitoring.receiver"], "/-/healthy", flags[1:]
        pid_file = pid_file.with_name("receiver.pid")
    stop_server(pid_file)
    log = pid_file.with_suffix(".log")
    with log.open("w") as output:
        command = [sys.executable, "-m", *module, *flags, "--port", port]
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    pid_file.write_text(str(process.pid))
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            urlopen(f"http://127.0.0.1:{port}{ready}").close()
        except URLError:
            time.sleep(POLL_S)
        else:
            return
    if process.poll() is not None:
        pid_file.unlink()
    sys.exit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main()
