"""README.md and docs/ say nothing that is not so: commands, flags, quoted code and output, diffs,
exercises."""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from conftest import TINY
from forks import start

import entropy
from plumbing.cli import parse
from plumbing.draw import CODES
from train_wmss import Config

ROOT = Path(__file__).resolve().parent.parent
SIX = ("model.py", "data.py", "entropy.py", "train_wmss.py", "eval_math.py", "eval_code.py")
PAGES = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8")
         for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README, FORKING = PAGES["README.md"], PAGES["docs/forking.md"]


def blocks(page, language=""):
    """The fenced blocks of a page that are marked with this language, as texts."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page, re.M | re.S)
    return [text for name, text in fenced if name == language]


def without_blocks(page):
    return re.sub(r"^ *```.*?^ *```$", "", page, flags=re.M | re.S)


def spans(page):
    """What stands `between backticks` in the running text, in one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(page))]


def commands(page):
    """[(program, arguments)] of a page: its blocks and its running text.

    program: a path such as train_wmss.py, or a module such as plumbing.text.
    """
    lines = []
    for block in blocks(page):
        lines += block.replace("\\\n", " ").splitlines()
    found = []
    for line in [*lines, *spans(page)]:
        for part in re.split(r"&&|,? then ", line):
            match = re.match(r"(?:[A-Z_]+=\S+ )*(?:python|torchrun)(?: --nproc_per_node \d+)? "
                             r"(?:-m (\S+)|(\S+\.py))(.*)", part.strip())
            if match:
                words = shlex.split(match[3].replace("...", ""), comments=True)
                found.append((match[1] or match[2], words))
    return found


ALL = [(page, *command) for page, text in PAGES.items() for command in commands(text)]
FLAG = r"--[a-z][a-z-]*"


@pytest.fixture(scope="module")
def help_of():
    """A function program -> the text that its -h prints."""
    seen = {}

    def ask(program):
        if program not in seen:
            out = io.StringIO()
            path = ROOT / program
            before = sys.argv, list(sys.path)
            sys.argv = [program, "-h"]
            try:
                with (contextlib.redirect_stdout(out), contextlib.suppress(SystemExit),
                      warnings.catch_warnings()):
                    warnings.simplefilter("ignore")     # runpy's, on modules that are imported
                    if program.endswith(".py"):
                        sys.path.insert(0, str(path.parent))
                        runpy.run_path(str(path), run_name="__main__")
                    else:
                        runpy.run_module(program, run_name="__main__")
            finally:
                sys.argv, sys.path[:] = before
            seen[program] = out.getvalue()
        return seen[program]

    return ask


# -------------------------------------------------------------------------------------------------
# README: a lesson, no laboratory book


def test_the_readme_stays_short():
    """Bug: a README that grew until nobody reads it."""
    assert len(README.splitlines()) <= 250
    assert len(README.encode()) <= 12_000
    for _, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S):
        assert max(map(len, block.splitlines())) <= 90


def test_few_numbers_stand_before_the_results():
    """Bug: figures before the reader knows what they are figures of."""
    before, results, _ = README.partition("## Does it help")
    assert results
    assert len(re.findall(r"\d+(?:[.,]\d+)*", before)) <= 40


def test_the_readme_has_its_pictures():
    """Bug: a picture that is not committed, or one that fetches something."""
    paths = re.findall(r"!\[[^]]+\]\((\S+)\)", README)
    assert paths == ["docs/gaps.svg", "experiments/when.svg"]
    for path in paths:
        svg = (ROOT / path).read_text()
        assert svg.startswith("<svg") and "prefers-color-scheme:dark" in svg
        assert len(svg) < 30_000 and "href" not in svg


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Bug: a link to a file, or to a heading, that was renamed."""
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGES[page]):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            names = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in names, anchor


def test_commits_that_are_named_are_in_the_history():
    """Bug: a figure of a commit that no clone has."""
    named = {word for text in PAGES.values() for word in re.findall(r"\b[0-9a-f]{7,12}\b", text)
             if re.search(r"[a-f]", word) and re.search(r"\d", word)}
    assert named
    if shutil.which("git") is None or (ROOT / ".git" / "shallow").exists():
        pytest.skip("no git history here to look a commit up in")
    for commit in named:
        asked = subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT,
                               capture_output=True)
        if b"not a git repository" in asked.stderr:
            pytest.skip("no git history here to look a commit up in")
        assert asked.returncode == 0, commit


# -------------------------------------------------------------------------------------------------
# commands, flags


def test_the_main_commands_are_there():
    """Bug: an extraction that finds nothing, so that all tests below pass."""
    assert ("README.md", "train_wmss.py", []) in ALL
    assert {"entropy.py", "eval_math.py", "eval_code.py", "data.py", "plumbing.text",
            "plumbing.export", "experiments/am.py"} <= {program for _, program, _ in ALL}


@pytest.mark.parametrize("program", sorted({program for _, program, _ in ALL}))
def test_commands_name_programs_and_flags_that_are_there(program, help_of):
    """Bug: a documented command for a file or a flag that was renamed."""
    path = program if program.endswith(".py") else program.replace(".", "/") + ".py"
    assert (ROOT / path).is_file()
    used = {word for _, name, words in ALL for word in words
            if name == program and re.fullmatch(FLAG, word)}
    new = set(re.findall(FLAG, " ".join(spans(FORKING)))) | {"--my-temp"}
    for flag in used - (new if program == "train_wmss.py" else set()) - {"-h"}:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", help_of(program)), flag


def test_flags_in_the_running_text_exist(help_of):
    """Bug: an advice to use a flag that is gone."""
    known = {"--nproc_per_node", "--max-restarts", "--my-temp", "--index-url"}
    known |= {"--kills", "--ranks", "--cross", "--flags"}           # of tests/kills.py
    for program in {program for _, program, _ in ALL}:
        known |= set(re.findall(FLAG, help_of(program)))
    for page, text in PAGES.items():
        used = set(re.findall(FLAG + r"(?:_\w+)*", " ".join(spans(text))))
        assert used <= known, (page, used - known)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/forking.md"])
def test_values_of_flags_are_allowed(page):
    """Bug: an arm, a preset or a task that is called otherwise now."""
    for _, program, words in [command for command in ALL if command[0] == page]:
        if program == "train_wmss.py" and "-h" not in words:
            parse(Config, words)


# -------------------------------------------------------------------------------------------------
# quoted code and output


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_quoted_code_is_in_one_of_the_six_files(block):
    """Bug: a README that explains code which has changed."""
    quoted = [line.strip() for line in block.splitlines() if line.strip()]
    for name in SIX:
        lines = iter([line.strip() for line in (ROOT / name).read_text().splitlines()])
        if all(line in lines for line in quoted):           # in this order: `in` moves on
            return
    pytest.fail(f"not found in this order in any of {', '.join(SIX)}:\n{block}")


def shape(line):
    """A line of output with # for each number."""
    return " ".join(re.sub(r"(?<![\w.])(?:[\d,.]+%?|-)(?![\w-])", "#", line).split())


def test_the_quoted_gap_table_is_what_entropy_prints(trained, capsys):
    """Bug: a column more or less than the README explains."""
    (quoted,) = [block for block in blocks(README) if block.startswith("code ")]
    entropy.main(["--weak", str(trained / "base.pt"), "--live", str(trained / "sft.pt")])
    printed = {shape(line) for line in capsys.readouterr().out.splitlines()}
    for line in quoted.splitlines():
        assert shape(line) in printed, line


def test_the_table_of_results_has_the_rows_of_a_run(trained):
    """Bug: an arm that the default run trains and the README leaves out, or the reverse."""
    rows = json.loads((trained / "scores.json").read_text())["rows"]
    names = ["wmss (strong)" if row["model"] == "wmss" else row["model"] for row in rows]
    table = README.partition("| model | what it is |")[2].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table[:len(names)]] == names
    assert not table[len(names)].startswith("|")


def test_what_the_readme_says_of_the_experiments_stands_there_too():
    """Bug: rows were made again, and the first page still tells the old numbers."""
    answer = README.partition("## Does it help")[2].partition("Every number")[0]
    page = (ROOT / "experiments/README.md").read_text()
    numbers = re.findall(r"\d+\.\d+", answer)
    assert numbers
    assert set(numbers) <= set(re.findall(r"\d+\.\d+", page))


def test_the_picture_can_be_drawn_again(trained, tmp_path, monkeypatch):
    """Bug: a committed picture whose command is gone, or one that is no XML."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import picture

    out = tmp_path / "gaps.svg"
    picture.main(["--weak", str(trained / "base.pt"), "--live", str(trained / "sft.pt"),
                  "--ids", "0", "5", "--out", str(out)])
    words = "".join(ElementTree.parse(out).getroot().itertext())
    committed = "".join(ElementTree.parse(ROOT / "docs/gaps.svg").getroot().itertext())
    for name in CODES:
        assert name in words and name in committed
    assert "sample 5" in words


# -------------------------------------------------------------------------------------------------
# exercises, forks

SOLUTIONS = blocks(PAGES["docs/exercises.md"], "python")


def test_there_are_ten_exercises_with_solutions():
    """Bug: a question without its answer."""
    asked, _, solved = PAGES["docs/exercises.md"].partition("## Solutions")
    numbers = [str(n) for n in range(1, 11)]
    assert re.findall(r"^(\d+)\. ", asked, re.M) == numbers
    assert re.findall(r"^\*\*(\d+)\.\*\*", solved, re.M) == numbers
    assert len(SOLUTIONS) == 10


@pytest.mark.parametrize("number", range(1, 11))
def test_solutions_run(number):
    """Bug: a solution that the code no longer agrees with."""
    exec(compile(SOLUTIONS[number - 1], f"exercise {number}", "exec"), {"__name__": "exercise"})


def hunks(block):
    """The places of a diff block -> [(file, old text, new text)]."""
    found = []
    for line in block.splitlines():
        if line.startswith("+++ "):
            path = line[4:]
            found.append((path, [], []))
        elif line == "@@":
            found.append((path, [], []))
        else:
            sign, text = line[:1] or " ", line[1:] + "\n"
            if sign in " -":
                found[-1][1].append(text)
            if sign in " +":
                found[-1][2].append(text)
    return [(path, "".join(old), "".join(new)) for path, old, new in found]


FORKS = [words for name, words in commands(FORKING)
         if name == "train_wmss.py" and "--name" in words]


def run_forks(tree):
    """Every command of docs/forking.md, by the program that lies in tree, in place of this one."""
    own = {"plumbing", *(name.removesuffix(".py") for name in SIX)}
    for name in list(sys.modules):
        if name.partition(".")[0] in own:
            del sys.modules[name]
    sys.path.insert(0, str(tree))
    os.chdir(tree.parent)
    import train_wmss
    assert train_wmss.__file__.startswith(str(tree))
    for words in FORKS:
        try:
            train_wmss.main([*TINY, *words])
        except BaseException:
            traceback.print_exc()


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """A copy of the project with all diffs of docs/forking.md, after all its commands have run."""
    folder = tmp_path_factory.mktemp("forked")
    tree = folder / "project"
    tree.mkdir()
    for name in SIX:
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "plumbing", tree / "plumbing",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks(FORKING, "diff"):
        for path, old, new in hunks(block):
            text = (tree / path).read_text()
            assert text.count(old) == 1, f"{path} does not have, once:\n{old}"
            (tree / path).write_text(text.replace(old, new))
    ran = start(partial(run_forks, tree), folder)
    return folder / "out", ran.stderr


@pytest.mark.parametrize("name", [words[words.index("--name") + 1] for words in FORKS])
def test_forks_run(name, forked):
    """Bug: a diff in the docs that no longer applies, or an arm, a formula, a task that cannot be
    added in these few lines."""
    out, errors = forked
    done = "sft.pt" if name == "small" else "scores.json"
    assert (out / name / done).is_file(), errors[-3000:]
    config = json.loads((out / name / "config.json").read_text())
    if name == "flag":
        assert config["my_temp"] == 0.7
    if name == "poly":
        rows = json.loads((out / name / "scores.json").read_text())["rows"]
        assert "poly" in [row["model"] for row in rows]
    if name == "double":
        rows = json.loads((out / name / "scores.json").read_text())["rows"]
        assert list(rows[0]["families"]) == ["double"]


# -------------------------------------------------------------------------------------------------
# the files beside the README


def test_requirements_are_the_six():
    """Bug: a dependency that creeps in, or one of the tests' that the project comes to need."""
    def names(path):
        lines = (ROOT / path).read_text().splitlines()
        return [re.match(r"[\w-]+", line)[0] for line in lines if line and line[0] != "#"]

    assert names("requirements.txt") == ["torch", "numpy", "tiktoken", "datasets", "pytest",
                                         "safetensors"]
    assert not set(names("requirements.txt")) & set(names("tests/requirements.txt"))
    assert "ruff" in names("tests/requirements.txt")


def test_the_citation_is_yaml_and_names_the_paper():
    """Bug: a CITATION.cff that no reader of the format takes."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert "2602.08222" in cited["preferred-citation"]["url"]


def test_the_workflow_calls_the_script_that_anybody_can_run():
    """Bug: checks that pass there and were never run here."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert {"run": ".ci/run"} in workflow["jobs"]["test"]["steps"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_plumbing_is_described_file_by_file():
    """Bug: a file that nobody can say the use of, a line for one that is gone."""
    described = re.findall(r"^\| `([\w/.]+)` \|", (ROOT / "plumbing/README.md").read_text(), re.M)
    there = {p.name for p in (ROOT / "plumbing").glob("*.py")} - {"__init__.py"}
    assert sorted(described) == sorted(there | {"presets/"})
