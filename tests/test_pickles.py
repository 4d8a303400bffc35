"""Nothing in the package reads what could run code when it is read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pydiffaccel

PACKAGE = Path(pydiffaccel.__file__).parent
# Modules that read pickles or the like.
MODULES = {"_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve"}
# Functions and classes that do so, as they are written where they are used.
NAMES = {"eval", "exec", "FileSystemReader", "all_gather_object", "broadcast_object_list", "gather_object"}
ATTRIBUTES = {"torch.load", "torch.jit.load", "torch.hub.load", "read_pickle", *NAMES - {"eval"}}


def unsafe(source: str) -> list[str]:
    """What a source uses that unpickles or runs code, as "line: what"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        used: set[str] = set()
        if isinstance(node, ast.Import):
            used = {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            used = ({module.partition(".")[0]} & MODULES) | (
                {f"{module}.{alias.name}" for alias in node.names} & ATTRIBUTES
            )
        elif isinstance(node, ast.Attribute):
            used = {ast.unparse(node), node.attr} & ATTRIBUTES
        elif isinstance(node, ast.Name):
            used = {node.id} & NAMES
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            used = set() if isinstance(node.value, ast.Constant) and node.value.value is False else {"allow_pickle"}
        found += [f"{node.lineno}: {name}" for name in used]
    return found


@pytest.mark.parametrize(
    ("source", "bad"),
    [
        ("import pickle", True),
        ("from joblib import load", True),
        ("def f():\n    import cloudpickle as c", True),
        ("torch.load(path, weights_only=True)", True),
        ("from torch import load", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=flag)", True),
        ("pandas.read_pickle(path)", True),
        ("eval(text)", True),
        ("exec(text)", True),
        ("torch.jit.load(path)", True),
        ("dist.broadcast_object_list(items)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("np.load(path)", False),
        ("network.eval()", False),
        ("from safetensors.torch import load_file", False),
        ("text = 'a pickle'", False),
    ],
)
def test_the_search_finds_what_it_should(source: str, bad: bool) -> None:
    assert bool(unsafe(source)) == bad


def test_nothing_is_unpickled() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    found = {path.relative_to(PACKAGE).as_posix(): unsafe(path.read_text(encoding="utf-8")) for path in files}
    # The published weights of Inception are a file of torch.save; torch's reader of tensors alone takes it.
    inception = PACKAGE / "evaluation" / "inception.py"
    assert inception.read_text(encoding="utf-8").count('torch.load(path, map_location="cpu", weights_only=True)') == 1
    assert [use.split(": ")[1] for use in found.pop("evaluation/inception.py")] == ["torch.load"]
    assert {name: uses for name, uses in found.items() if uses} == {}
