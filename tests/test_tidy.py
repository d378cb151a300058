"""The rules that protect behaviour and keep the house readable, held against the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vzdump_qemu", "vzsim")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Below the adapters nothing has a clock, chance, environment or I/O of its own.
PURE_ROOMS = ("formats", "plan", "engine")
BANNED_IMPORTS = {
    "time", "random", "secrets", "socket", "subprocess", "os", "shutil", "tempfile", "logging",
    "pathlib", "threading", "signal", "fcntl", "select", "multiprocessing", "io",
}  # fmt: skip
BANNED_IN_VALUES_ROOMS = {"asyncio"}
BANNED_CALLS = {
    "open", "print", "input", "uuid4", "uuid1", "urandom", "getenv", "now", "today", "utcnow",
    "monotonic", "perf_counter", "create_subprocess_exec", "create_subprocess_shell",
    "open_unix_connection", "open_connection", "to_thread", "run_in_executor",
}  # fmt: skip
BANNED_WORDS = {"quiesce", "qga", "rollback", "teardown", "blob", "cluster", "archive", "snapshot"}
LINES_MAX = 500
FUNCTION_LINES_MAX = 60


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "vzdump_qemu" and len(parts) > 2 else ""


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if _room(path) in PURE_ROOMS], ids=_relative
)
def test_pure_room_has_no_clock_chance_environment_or_io(path: Path) -> None:
    tree = _tree(path)
    banned = set(BANNED_IMPORTS)
    if _room(path) != "engine":
        banned |= BANNED_IN_VALUES_ROOMS
    assert not _imported(tree) & banned
    called = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                called.add(node.func.id)
            elif isinstance(node.func, ast.Attribute) and node.func.attr != "open":
                # A port may have something to open; the built-in stands alone.
                called.add(node.func.attr)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # Waiting goes through the Clock that was handed in.
            assert (node.value.id, node.attr) != ("asyncio", "sleep")
    assert not called & BANNED_CALLS


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_module_is_short_and_says_what_it_owns(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINES_MAX
    if text.strip():
        assert ast.get_docstring(_tree(path)), "no module docstring"


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_function_is_short_and_its_arguments_are_few(path: Path) -> None:
    for function in _functions(_tree(path)):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, f"{function.name}: {lines} lines"
        positional = [a for a in function.args.args if a.arg not in ("self", "cls")]
        decorators = " ".join(ast.unparse(d) for d in function.decorator_list)
        if "click" not in decorators and "option" not in decorators:
            assert len(positional) <= 5, f"{function.name}: {len(positional)} positional"


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_identifiers_use_the_glossary(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.arg):
            names.append(node.arg)
        for name in names:
            # The mode SNAPSHOT is the one exception of the glossary.
            if name == "SNAPSHOT":
                continue
            assert name.lower() not in BANNED_WORDS, f"line {getattr(node, 'lineno', 0)}: {name}"


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_broad_except_stands_only_where_undo_failures_and_commands_end(path: Path) -> None:
    allowed = {"vzdump_qemu/engine/undo.py", "vzdump_qemu/cli/main.py"}
    if _relative(path) in allowed:
        return
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in {"Exception", "everything"}, f"line {node.lineno}"


def test_packages_do_not_nest_deeper_than_two() -> None:
    for path in SOURCES:
        assert len(path.relative_to(ROOT).parts) <= 4, _relative(path)
        assert not re.search(r"/(utils|helpers|common|misc)(\.py|/)", _relative(path))
