"""``python -m terse_aug``: the command ``terse-aug``."""

import sys

from terse_aug.cli import main

sys.exit(main())
