"""python -m ddpo3d_fast is the command ddpo3d-fast."""

import sys

from ddpo3d_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
