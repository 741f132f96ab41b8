"""`python -m monitoring` (`make dashboards`): writes every dashboard and rule file."""

from __future__ import annotations

from monitoring.files import ROOT, files

for path, text in files().items():
    target = ROOT / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(path)
