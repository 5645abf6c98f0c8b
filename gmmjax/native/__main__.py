"""`python -m gmmjax.native`: compile the native steps for this machine."""

import sys

from gmmjax import native


def main() -> int:
    """Build, and say where it lies; exit status 1 if it cannot be built."""
    try:
        print(native.build())
    except native.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
