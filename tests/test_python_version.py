"""The one sentence that an old Python gets."""

import ast
import os
import sys

import pytest
from conftest import ROOT

with open(os.path.join(ROOT, "plumbing", "__init__.py")) as f:
    SOURCE = f.read()


def test_an_old_python_is_refused_in_one_sentence(monkeypatch):
    """Bug: a regular expression that Python 3.10 cannot read, reported from deep inside."""
    ast.parse(SOURCE, feature_version=(3, 8))
    monkeypatch.setattr(sys, "version_info", (3, 10, 14, "final", 0))
    with pytest.raises(SystemExit, match="^wmss: expected Python 3.11 or newer, found .*; make "):
        exec(SOURCE, {})


def test_this_python_is_not_refused():
    """Bug: 3.9 compared with 3.11 as text or as a fraction."""
    exec(SOURCE, {})
    assert sys.version_info >= (3, 11)
