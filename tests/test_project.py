"""The project itself: arrows between packages, light imports, docs that are true."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest

import semprobe
from semprobe.cli import COMMANDS, main, module_of
from semprobe.vocabulary import VARIABLES
from tools import make_docs

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "semprobe": "semprobe", "semprobe/formats": "semprobe.formats", "cli": "semprobe.cli", "stores": "semprobe.stores",
}  # fmt: skip
MODULES = {path: f"{name}.{path.stem}" for folder, name in FOLDERS.items() for path in (ROOT / folder).glob("*.py")}


def _imports(path: Path, top: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_arrows(path: Path) -> None:
    found = _imports(path)
    assert not {name for name in found if name.split(".")[0] in ("cli", "stores")}, "import by the real names"
    if path.parent.name != "cli":
        assert not {name for name in found if name.startswith("semprobe.cli")}
    if path.parent.name == "stores":
        allowed = ("semprobe.stores", "semprobe.errors", "semprobe.vocabulary")
        assert all(name.startswith(allowed) for name in found if name.startswith("semprobe"))
        assert not {name for name in found if name.split(".")[0] in ("torch", "timm", "scipy")}


def test_torch_only_where_a_backbone_or_an_sae_runs() -> None:
    with_torch = {path.stem for path in MODULES if "torch" in {n.split(".")[0] for n in _imports(path, top=True)}}
    assert with_torch == {"backbones", "extraction", "kernel", "weights"}


def test_packages_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"] == list(FOLDERS.values())
    assert settings["package-dir"] == {name: folder for folder, name in FOLDERS.items()}
    for folder in FOLDERS:
        packages = {str(p.parent.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.py")}
        assert packages <= FOLDERS.keys(), "a package not in the list"


def _runs(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_imports_are_light() -> None:
    heavy = "[m for m in ('torch', 'timm', 'xarray', 'dask', 'zarr', 'pandas', 'scipy', 'PIL') if m in sys.modules]"
    assert _runs(f"import sys, semprobe; print({heavy})").strip() == "[]"
    assert _runs(f"import sys; from semprobe.cli import main; main(['--help'], standalone_mode=False); print({heavy})"
                 ).strip().endswith("[]")  # fmt: skip
    without_torch = (
        "import sys, semprobe; semprobe.open_store, semprobe.score, semprobe.find_images; print('torch' in sys.modules)"
    )
    assert _runs(without_torch).strip() == "False"


def test_help_is_quick() -> None:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "semprobe.cli", "--help"], check=True, capture_output=True)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5


def test_every_public_name_is_there_and_documented() -> None:
    assert set(semprobe.__all__) == set(semprobe._HOMES) | {"__version__"}
    for name in semprobe._HOMES:
        assert getattr(semprobe, name).__doc__, name
    assert dir(semprobe) == sorted(semprobe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        semprobe.nothing  # noqa: B018


@pytest.mark.parametrize("name", sorted(MODULES.values()))
def test_doctests(name: str) -> None:
    assert doctest.testmod(import_module(name.removesuffix(".__init__")), optionflags=doctest.ELLIPSIS).failed == 0


# docs


def _commands() -> dict[str, click.Command]:
    context = click.Context(main)
    return {name: main.get_command(context, name) for name in COMMANDS}  # type: ignore[misc]


def test_every_command_has_help_an_example_and_a_section() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert {path.stem for path in (ROOT / "cli").glob("[!_]*.py")} == set(map(module_of, COMMANDS))
    for name, command in _commands().items():
        assert command.help, name
        assert f"semprobe {name} " in (command.epilog or ""), name
        assert f"## semprobe {name}\n" in page, name
        assert all(p.help for p in command.params if isinstance(p, click.Option)), name


def test_generated_docs_are_up_to_date() -> None:
    for path, text in make_docs.pages().items():
        assert path.read_text() == text, f"{path.name} is stale: python tools/make_docs.py"


def test_vocabulary_is_what_stores_hold(acts: Path) -> None:
    found = semprobe.open_store(acts)
    assert set(map(str, found.variables)) <= set(VARIABLES)
    for name, variable in found.variables.items():
        known = VARIABLES[str(name)]
        assert variable.dims == known.dims
        assert variable.attrs["description"] == known.text, name
        assert known.kind == "string" or str(variable.dtype) in known.kind, name


def test_links_in_the_docs_lead_somewhere() -> None:
    import re

    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
