"""`python -m service`: runs the command line."""

import sys

try:
    from service.cli import main
    from service.host import correct_proxy_variables, open_closed_streams
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] == "service":
        raise
    print(
        f"error: {sys.executable} has no package {error.name}; with those that `make serve` installs: "
        ".venv/bin/python -m service",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

if __name__ == "__main__":
    open_closed_streams()
    correct_proxy_variables()
    raise SystemExit(main())
