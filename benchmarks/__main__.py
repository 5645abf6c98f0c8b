"""`python -m benchmarks NAME [options]` runs one of the scripts here; without a name, lists them."""

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = {
    p.stem: (ast.get_docstring(ast.parse(p.read_text())) or "").splitlines()[0]
    for p in sorted(FOLDER.glob("*.py"))
    if not p.stem.startswith("_")
}


def main() -> int:
    """Run the script that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__, *(f"  {n:<28}{text}" for n, text in SCRIPTS.items()), sep="\n")
        return 0
    if name not in SCRIPTS:
        print(f"no benchmark is called {name!r}; there are: {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    sys.argv = [f"benchmarks/{name}.py", *sys.argv[2:]]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
