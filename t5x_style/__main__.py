"""`python -m t5x_style VERB …`, the same as `t5x-style VERB …`."""

import sys

from t5x_style.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
