"""`python -m adlib`: the library's commands; `adlib` knows those of the book too."""

import sys

from adlib.cli import main

sys.exit(main())
