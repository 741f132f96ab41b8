"""Makes the pictures of the playground in docs/images: one for English, one for Chinese.

python -m tests.clients.pictures     # needs chromium with a Chinese font on the PATH
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.clients.environments import ROOT, SCRIPTS, environment, python_of
from tests.clients.test_playground import CHROMIUM
from tests.support.servers import serving

IMAGES = ROOT / "docs" / "images"


def main(folder: Path) -> None:
    if CHROMIUM is None:
        sys.exit("no chromium on the PATH: apt install chromium fonts-wqy-microhei")
    folder.mkdir(parents=True, exist_ok=True)
    with serving("--precision=bfloat16") as server:
        variables = environment(URL=f"{server.url}/", CHROMIUM=CHROMIUM, IMAGES=str(folder))
        subprocess.run([python_of("browser"), SCRIPTS / "playground_pictures.py"], env=variables, check=True)


if __name__ == "__main__":
    main(IMAGES)
