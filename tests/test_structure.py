"""The shape of the project: how much there is to read, how it is written, what imports what. All
bounds are upper bounds."""

import ast
import functools
import os
import re

import pytest
from conftest import ROOT

READING_PATH = ("model.py", "data.py", "entropy.py", "train_wmss.py", "eval_math.py",
                "eval_code.py")
TOP = (*READING_PATH, "sample.py")              # all that lies at the top


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


parsed = functools.cache(ast.parse)             # of a source; many rules read the same files


def tree(path):
    return parsed(read(path))


def python_files(folder):
    """Paths, relative to the project, of all Python files in a folder and below it."""
    found = []
    for directory, _, names in os.walk(os.path.join(ROOT, folder)):
        for name in sorted(names):
            if name.endswith(".py"):
                found.append(os.path.relpath(os.path.join(directory, name), ROOT))
    return found


def lines_of(paths):
    return sum(len(read(path).splitlines()) for path in paths)


# -------------------------------------------------------------------------------------------------
# how much, and how wide


def test_the_method_is_read_in_an_afternoon():
    """Bug: a reading path that grows by a page with every feature."""
    assert lines_of(READING_PATH) <= 2000
    extra = {name for name in os.listdir(ROOT) if name.endswith(".py")} - set(TOP)
    assert lines_of(["sample.py"]) <= 100
    assert not extra, "what a reader of the method does not need lies in plumbing/ or experiments/"


@pytest.mark.parametrize("folder, most", [("plumbing", 10000), ("experiments", 4000)])
def test_what_lies_beside_the_method_has_a_budget(folder, most):
    """Bug: a shed into which everything goes."""
    assert python_files(folder) and lines_of(python_files(folder)) <= most


@pytest.mark.parametrize("path", TOP)
def test_no_line_is_wider_than_100_columns(path):
    """Bug: lines that a printed page or a diff of two columns breaks."""
    for n, line in enumerate(read(path).splitlines(), 1):
        assert len(line) <= 100, f"{path}:{n}"


def length(function):
    return function.end_lineno - function.lineno + 1


def test_the_training_loop_fits_a_screen_and_a_half():
    """Bug: a loop whose WMSS lines one no longer sees among the others."""
    functions = {node.name: node for node in ast.walk(tree("train_wmss.py"))
                 if isinstance(node, ast.FunctionDef)}
    assert length(functions["train"]) <= 75
    (loop,) = [node for node in functions["train"].body if isinstance(node, ast.For)]
    assert length(loop) <= 70


@pytest.mark.parametrize("path", TOP)
def test_each_function_and_class_fits_two_screens(path):
    """Bug: a function that nobody keeps in the head."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert length(node) <= 80, f"{path}: {node.name}"


# -------------------------------------------------------------------------------------------------
# how it is written


def statements(node):
    """The lists of statements inside a node: bodies, else branches, handlers' bodies."""
    for child in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(child, name, None)
            if isinstance(block, list) and block:
                yield child, block


@pytest.mark.parametrize("path", TOP)
def test_one_statement_stands_on_a_line(path):
    """Bug: a semicolon, or a body behind its colon."""
    for parent, block in statements(tree(path)):
        header = getattr(parent, "lineno", 0)
        for before, after in zip(block, block[1:], strict=False):
            assert after.lineno > before.end_lineno, f"{path}:{after.lineno}"
        if not isinstance(parent, ast.Module):
            assert block[0].lineno > header, f"{path}:{block[0].lineno}"


@pytest.mark.parametrize("path", TOP)
def test_no_tuple_is_made_by_a_trailing_comma(path):
    """Bug: a comma at the end of a line that a reader does not see."""
    lines = read(path).splitlines()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Tuple):         # one in parentheses ends with the parenthesis
            last = lines[node.end_lineno - 1].encode()[:node.end_col_offset]
            assert not last.rstrip().endswith(b","), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", TOP)
def test_a_lambda_has_no_name_and_lambdas_and_walruses_are_few(path):
    """Bug: a page that is read as a puzzle."""
    seen = []
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            assert not isinstance(node.value, ast.Lambda), f"{path}:{node.lineno}"
        if isinstance(node, (ast.Lambda, ast.NamedExpr)):
            seen.append(node.lineno)
    pages = len(read(path).splitlines()) / 60
    assert len(seen) <= pages, f"{path}: more than one a page, in lines {sorted(seen)}"


@pytest.mark.parametrize("path", TOP)
def test_comments_name_no_section_of_a_document_that_is_not_here(path):
    """Bug: "section 1.2 of the method", which no reader can look up."""
    flat = " ".join(read(path).replace("#", " ").split())
    named = re.findall(r"[Ss]ections? [\d.]+(?:-[\d.]+)? of the (?:method|design|plan)", flat)
    assert not named


# -------------------------------------------------------------------------------------------------
# what imports what


def module_of(path):
    """plumbing/hf.py -> plumbing.hf, plumbing/__init__.py -> plumbing"""
    parts = path[:-len(".py")].split(os.sep)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def own_modules():
    paths = [name for name in os.listdir(ROOT) if name.endswith(".py")]
    paths += python_files("plumbing") + python_files("experiments")
    return {module_of(path): path for path in paths}


MODULES = own_modules()
LAZY = ("import_module", "__import__", "run_module")


def names_imported(path):
    """Dotted names that a file may import, those inside functions and by import_module too."""
    package = os.path.dirname(path).replace(os.sep, ".")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                start = ".".join(filter(None, [package, start]))
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in LAZY and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def imports(module):
    """The project's own modules that a module imports."""
    found = {name for name in names_imported(MODULES[module]) if name in MODULES}
    return sorted(found - {module, "plumbing", "experiments"})


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    """Bug: plumbing that cannot be read without the method, a method that stands on experiments."""
    floor = module.split(".")[0]
    for name in imports(module):
        if floor != "experiments":
            assert not name.startswith("experiments"), f"{module} imports {name}"
        if floor == "plumbing":
            assert name.startswith("plumbing.") or name in ("model", "data"), \
                f"{module} imports {name}"


def circle_from(module, path=(), done=None):
    """The first circle of imports that is met from a module, as a list of names; or None."""
    if module in path:
        return [*path[path.index(module):], module]
    if module in done:
        return None
    for name in imports(module):
        circle = circle_from(name, (*path, module), done)
        if circle:
            return circle
    done.add(module)
    return None


def test_no_circle_of_imports():
    """Bug: two files of which each needs the other first, hidden by an import in a function."""
    done = set()
    for module in MODULES:
        circle = circle_from(module, (), done)
        assert not circle, " -> ".join(circle)


def test_the_rules_see_what_they_are_to_see(tmp_path, monkeypatch):
    """Bug: a rule that no file can break."""
    (tmp_path / "plumbing").mkdir()
    (tmp_path / "experiments").mkdir()
    files = {"model.py": "def f():\n    from plumbing import a\n",
             "plumbing/a.py": "from . import b\n",
             "plumbing/b.py": "import importlib\nimportlib.import_module('model')\n",
             "plumbing/c.py": "from experiments.x import y\nimport entropy\n",
             "experiments/x.py": "import model as m, plumbing.c\n", "entropy.py": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("test_structure.ROOT", str(tmp_path))
    monkeypatch.setattr("test_structure.MODULES", own_modules())
    assert imports("model") == ["plumbing.a"] and imports("plumbing.b") == ["model"]
    assert imports("experiments.x") == ["model", "plumbing.c"]
    with pytest.raises(AssertionError, match="model -> plumbing.a -> plumbing.b -> model"):
        test_no_circle_of_imports()
    for module in ("model", "entropy", "experiments.x", "plumbing.a"):
        test_imports_go_down(module)
    with pytest.raises(AssertionError, match="plumbing.c imports entropy"):
        test_imports_go_down("plumbing.c")
    (tmp_path / "entropy.py").write_text("x = 1; y = 2\nif x: y = 3\nz = x,\nf = lambda: 0\n")
    for rule in (test_one_statement_stands_on_a_line, test_no_tuple_is_made_by_a_trailing_comma,
                 test_a_lambda_has_no_name_and_lambdas_and_walruses_are_few):
        with pytest.raises(AssertionError):
            rule("entropy.py")
