"""`python -m service`: hands over to the command line."""

from service.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
