"""`python -m reqdedup` is `reqdedup`."""

import sys

from reqdedup.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
