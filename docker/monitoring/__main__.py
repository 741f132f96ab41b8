"""`python -m docker.monitoring` (`make dashboards`): writes every dashboard and rule to where it is read from."""

from __future__ import annotations

from docker.monitoring.files import ROOT, files

for path, text in files().items():
    target = ROOT / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(path)
