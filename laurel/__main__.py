"""`python -m laurel` is the `laurel` command."""

import sys

from laurel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
