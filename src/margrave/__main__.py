"""Run the command line with ``python -m margrave``."""

from margrave.cli import main

if __name__ == "__main__":
    main()
