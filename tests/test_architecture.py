"""The rooms of docs/architecture.md: arrows point one way, and the core imports no edge."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gmmjax"
EDGES = {"datasets", "idx", "tables", "io", "plot", "cli"}


def room(path: Path) -> str:
    """A file of the package, or the folder it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> set[str]:
    """Rooms imported at run time, anywhere in a file; `if TYPE_CHECKING:` blocks do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "gmmjax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gmmjax."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gmmjax.")}
    return found


def arrows() -> dict[str, set[str]]:
    rooms = {room(p) for p in PACKAGE.rglob("*.py")} - {"__init__"}
    graph: dict[str, set[str]] = {r: set() for r in rooms}
    for path in PACKAGE.rglob("*.py"):
        if room(path) != "__init__":
            graph[room(path)] |= (imports(ast.parse(path.read_text())) & rooms) - {room(path)}
    return graph


def test_arrows_point_one_way():
    order = list(TopologicalSorter(arrows()).static_order())  # raises CycleError, naming the cycle
    assert order.index("moments") < order.index("mixture") < order.index("fit")
    assert order.index("em") < order.index("fit")


def test_the_driver_knows_no_gaussian():
    assert not arrows()["em"] & {"mixture", "families", "expectation", "moments"}


def test_the_core_imports_no_edge():
    for name, targets in arrows().items():
        if name not in EDGES:
            assert not targets & EDGES, name


def rooms_of_the_page() -> list[str]:
    """The rooms in the order of the table "The rooms, from the ground up"."""
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    table = page.split("## The rooms, from the ground up")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (.*?`.*?) \|", table, re.MULTILINE)
    return [name for cell in first_cells for name in re.findall(r"`(\w+)/?`", cell)]


def test_every_room_is_in_the_architecture_page_once():
    named = {name for name in arrows() if not name.startswith("_") and name != "data"}
    assert sorted(rooms_of_the_page()) == sorted(named)


def test_each_room_imports_only_from_rooms_above_it_on_the_page():
    order = {name: place for place, name in enumerate(rooms_of_the_page())}
    for name, targets in arrows().items():
        for target in targets & order.keys():
            assert name not in order or order[target] < order[name], f"{name} imports {target}"
