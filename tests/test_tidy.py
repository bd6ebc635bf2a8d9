"""The rules of style that a program can check, and a planted fault for each of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "perdure"

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
VAGUE_CLASS = re.compile(r"(Manager|Helper|Util|Utils|Impl)$")
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec"}
BROAD = {"Exception", "BaseException"}

BROAD_ALLOWED = {
    "cli/loading.py": "importing a user's module may raise anything; the command says what",
    "cli/outcome.py": "whatever happens becomes one line and an exit code",
    "codec.py": "a type's own hooks and comparisons may raise anything; it is a PayloadError",
    "core/execution.py": "an orchestration may raise anything; it fails with it",
    "core/failures.py": "an exception's own methods may raise while it is being recorded",
    "core/loop.py": "a callback may raise anything; like asyncio, the loop reports it and goes on",
    "core/unwinding.py": "what user code raises while it is thrown away must not be seen",
    "providers/committer.py": "a value that a store refuses must not take its neighbours along",
    "providers/worker.py": "an error in the thread goes to whoever waits for its work",
    "runtime/attempts.py": "an activity may raise anything; it fails with it",
    "runtime/intake.py": "a node that takes nothing in any more would look alive and do nothing",
    "runtime/transactions.py": "a transactional activity may raise anything; it fails with it",
    "runtime/threads.py": "what a call in a thread raises goes to whoever waits for it",
    "runtime/turns.py": "a turn that fails blocks its own instance and no other",
    "runtime/watchdog.py": "the thread that renews the lease must not end",
}
"""Modules at the border to foreign code, with the reason why they catch everything."""


def faults(name: str, source: str) -> list[str]:
    """What breaks a rule in `source`. name: its path below the package, with slashes."""
    tree = ast.parse(source)
    found = list(_module_faults(source, tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += _function_faults(node)
        found += _node_faults(node)
        if isinstance(node, ast.ExceptHandler) and name not in BROAD_ALLOWED and _is_broad(node):
            found.append(f"line {node.lineno}: broad except")
    return found


def _module_faults(source: str, tree: ast.Module) -> Iterator[str]:
    lines = len(source.splitlines())
    if lines > MODULE_LINES_MAX:
        yield f"{lines} lines in one module; at most {MODULE_LINES_MAX}"
    if tree.body and ast.get_docstring(tree) is None:
        yield "no module docstring"


def _function_faults(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    first = function.body[0]
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
    lines = (function.end_lineno or 0) - function.lineno + 1 - docstring
    if lines > FUNCTION_LINES_MAX:
        yield f"line {function.lineno}: {function.name} has {lines} lines"
    defaults = [*function.args.defaults, *function.args.kw_defaults]
    if any(_is_mutable(default) for default in defaults):
        yield f"line {function.lineno}: mutable default in {function.name}"


def _node_faults(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.ClassDef(name=name) if VAGUE_CLASS.search(name):
            yield f"line {node.lineno}: class {name} says nothing"
        case ast.Call(func=ast.Name(id=name)) if name in UNSAFE_CALLS:
            yield f"line {node.lineno}: {name}()"
        case ast.Import(names=aliases):
            for alias in aliases:
                if alias.name.split(".")[0] in UNSAFE_MODULES:
                    yield f"line {node.lineno}: {alias.name}"
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNSAFE_MODULES:
            yield f"line {node.lineno}: {module}"


def _is_mutable(default: ast.expr | None) -> bool:
    match default:
        case ast.List() | ast.Dict() | ast.Set() | ast.ListComp() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name in {"list", "dict", "set", "bytearray", "deque"}
    return False


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything, other than to clean up and raise it again."""
    match handler.body[-1]:
        case ast.Raise(exc=None):
            return False
    match handler.type:
        case None:
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in BROAD
        case ast.Tuple(elts=types):
            return any(isinstance(each, ast.Name) and each.id in BROAD for each in types)
    return False


def names() -> list[str]:
    return sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("name", names())
def test_a_module_is_tidy(name: str) -> None:
    assert faults(name, (SOURCE / name).read_text()) == []


@pytest.mark.parametrize("name", sorted(BROAD_ALLOWED))
def test_a_module_that_may_catch_everything_does(name: str) -> None:
    handlers = [
        node
        for node in ast.walk(ast.parse((SOURCE / name).read_text()))
        if isinstance(node, ast.ExceptHandler) and _is_broad(node)
    ]

    assert handlers, "take it off the list"


HEAD = '"""A module."""\n'
LONG_FUNCTION = HEAD + "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (HEAD + "\n" * MODULE_LINES_MAX, "501 lines"),
        ("x = 1", "no module docstring"),
        (LONG_FUNCTION, "f has 61 lines"),
        (LONG_FUNCTION.replace("def", "async def"), "f has 61 lines"),
        (HEAD + "def f(x=[]): ...", "mutable default in f"),
        (HEAD + "def f(*, x={}): ...", "mutable default in f"),
        (HEAD + "async def f(x=set()): ...", "mutable default in f"),
        (HEAD + "class StoreManager: ...", "StoreManager"),
        (HEAD + "class LoopImpl: ...", "LoopImpl"),
        (HEAD + "try: ...\nexcept: ...", "broad except"),
        (HEAD + "try: ...\nexcept Exception: ...", "broad except"),
        (HEAD + "try: ...\nexcept builtins.BaseException: ...", "broad except"),
        (HEAD + "try: ...\nexcept (OSError, Exception): ...", "broad except"),
        (HEAD + "try: ...\nexcept Exception:\n    raise OSError", "broad except"),
        (HEAD + "import pickle", "pickle"),
        (HEAD + "from marshal import loads", "marshal"),
        (HEAD + "eval('1')", "eval()"),
        (HEAD + "exec('1')", "exec()"),
    ],
)
def test_a_planted_fault_is_found(source: str, complaint: str) -> None:
    assert complaint in "\n".join(faults("runtime/host.py", source))


@pytest.mark.parametrize(
    "source",
    [
        "",
        HEAD + "\n" * (MODULE_LINES_MAX - 1),
        LONG_FUNCTION.replace("    x = 1\n", '    """A\n\n    docstring."""\n', 1),
        HEAD + "def f(x=(), y=None): ...",
        HEAD + "class Implicit: ...",
        HEAD + "try: ...\nexcept (OSError, ValueError): ...",
        HEAD + "try: ...\nexcept BaseException:\n    x = 1\n    raise",
        HEAD + "import re\nre.compile('x')",
    ],
)
def test_what_is_within_the_rules_is_no_fault(source: str) -> None:
    assert faults("runtime/host.py", source) == []


def test_a_listed_module_may_catch_everything() -> None:
    source = HEAD + "try: ...\nexcept BaseException: ..."

    assert faults("core/execution.py", source) == []
