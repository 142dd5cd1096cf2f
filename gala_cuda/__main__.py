"""``python -m gala_cuda`` is the command ``gala-cuda``."""

import sys

from .cli.main import main

sys.exit(main())
