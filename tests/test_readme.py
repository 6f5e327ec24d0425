"""README.md says nothing that is not so: line counts, flags, commands, file names."""

import dataclasses
import os
import re

import pytest

import train_wmss
from conftest import ROOT

with open(os.path.join(ROOT, "README.md")) as f:
    README = f.read()


def lines_of(name):
    with open(os.path.join(ROOT, name)) as f:
        return sum(1 for _ in f)


@pytest.mark.parametrize("name", sorted(f for f in os.listdir(ROOT) if f.endswith(".py")))
def test_line_counts_are_true(name):
    """Bug: "300 lines" that have become 700."""
    (said,) = re.findall(rf"`{re.escape(name)}` (\d+)", README)
    assert int(said) == lines_of(name)


def test_every_flag_has_its_place_and_every_flag_named_exists():
    """Bug: a flag that nobody can find, a documented flag that is gone."""
    rows = "\n".join(line for line in README.splitlines() if line.startswith("| ") and "`--" in line)
    fields = {"--" + f.name.replace("_", "-") for f in dataclasses.fields(train_wmss.Config)}
    assert fields <= set(re.findall(r"--[a-z][a-z-]*", rows))
    for command in re.findall(r"^(?:torchrun|python)(?: --nproc_per_node \d)? train_wmss\.py([^#\n]*)", README, re.M):
        flags = set(re.findall(r"--[a-z][a-z-]*", command))
        assert flags <= fields, command


def test_commands_name_files_that_are_there():
    """Bug: a command for a file that was renamed."""
    for name in set(re.findall(r"(?:python|torchrun)[^\n#]*?([\w/]+\.py)", README)) | set(re.findall(r"-r (\S+\.txt)", README)):
        assert os.path.isfile(os.path.join(ROOT, name)), name


def test_requirements_are_the_five():
    """Bug: a sixth dependency that creeps in."""
    with open(os.path.join(ROOT, "requirements.txt")) as f:
        names = [re.match(r"[\w-]+", line)[0] for line in f if line.strip() and not line.startswith("#")]
    assert names == ["torch", "numpy", "tiktoken", "datasets", "pytest"]
