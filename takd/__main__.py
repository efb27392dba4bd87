"""`python -m takd` is the command `takd`."""

import sys

from takd.study.cli import main

if __name__ == "__main__":
    sys.exit(main())
