"""`python -m wilson`."""

import sys

from wilson.cli import main

sys.exit(main())
