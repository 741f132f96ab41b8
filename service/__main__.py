"""`python -m service`: runs the command line."""

from service.cli import main
from service.host import open_closed_streams

if __name__ == "__main__":
    open_closed_streams()
    raise SystemExit(main())
