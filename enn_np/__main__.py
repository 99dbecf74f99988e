"""`python -m enn_np`."""

from .lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
