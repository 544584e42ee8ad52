"""``python -m qertify``."""

import sys

from qertify.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
