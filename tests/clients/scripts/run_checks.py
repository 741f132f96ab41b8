"""Runs the `check_` functions of a script, and prints their outcomes as one line of JSON. Needs no package."""

import asyncio
import importlib.util
import inspect
import json
import sys
import traceback
from pathlib import Path

script = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location(script.stem, script)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
outcomes = {}
for name, check in vars(module).items():
    if name.startswith("check_"):
        try:
            asyncio.run(check()) if inspect.iscoroutinefunction(check) else check()
            outcomes[name] = "passed"
        except Exception:  # noqa: BLE001 - the outcome of this check
            outcomes[name] = traceback.format_exc()
print(json.dumps(outcomes))
