"""plumbing/cli.py: a dataclass becomes flags; what is wrong with them is said at once and in plain
words."""

import os
import re
import sys
from dataclasses import dataclass, fields, make_dataclass
from typing import Literal

import pytest
from runs import refuse

import entropy
import train_wmss
from plumbing import stop
from plumbing.checks import check_flags
from plumbing.cli import PRESETS, arg, flag_of, parse, preset_notes, preset_words, program
from train_wmss import Config

NAMES = sorted(name[:-4] for name in os.listdir(PRESETS))


def read(*argv, cls=Config, check=check_flags):
    return parse(cls, list(argv), description=train_wmss.__doc__, check=check)[0]


def wrong(*argv, **how):
    """The sentences on these flags."""
    with pytest.raises(ValueError) as e:
        read(*argv, **how)
    return str(e.value)


# -------------------------------------------------------------------------------------------------
# values


@dataclass
class Sampler:
    """One field of each kind that a flag can have."""
    size: int = 3
    share: float = arg(0.5, "a share", low=0, high=1)
    rate: float = arg(1e-3, "a rate", above=0)
    floor: int = arg(2, "a count", low=1)
    most: float = arg(1.0, "a number that may be negative", high=5)
    mode: Literal["slow", "fast"] = "slow"
    words: list[str] = arg([], "words", choices=("a", "b"))
    numbers: list[int] = arg([1, 2], "numbers")
    quiet: bool = False
    maybe: bool | None = None
    limit: int | None = None
    temp: float | None = None
    text: str = "none"


def sample(*argv):
    return read(*argv, cls=Sampler, check=None)


def test_every_kind_of_field_is_read_as_what_it_is():
    """Bug: a number kept as text, a list of one letter each, None that cannot be given a value."""
    cfg = sample("--size", "7", "--share", "1", "--rate", "1e-5", "--mode", "fast", "--words", "a",
                 "b", "--numbers", "4", "--quiet", "--no-maybe", "--limit", "9", "--temp", "0.25",
                 "--text", "a b", "--most", "-3.5")
    assert vars(cfg) == dict(size=7, share=1.0, rate=1e-5, floor=2, most=-3.5, mode="fast",
                             words=["a", "b"], numbers=[4], quiet=True, maybe=False, limit=9,
                             temp=0.25, text="a b")
    assert isinstance(cfg.share, float) and isinstance(cfg.limit, int)
    assert vars(sample()) == vars(Sampler()) and sample().numbers is not sample().numbers
    assert sample("--size=4").size == 4 and sample("--no-quiet").quiet is False


@pytest.mark.parametrize("flags, words", [
    (("--size", "many"), "--size: expected a whole number, found 'many'"),
    (("--size", "1.5"), "--size: expected a whole number, found '1.5'"),
    (("--share", "much"), "--share: expected a number, found 'much'"),
    (("--share", "1.01"), "--share: expected a number from 0 to 1, found 1.01"),
    (("--share", "nan"), "--share: expected a number from 0 to 1, found nan"),
    (("--rate", "0"), "--rate: expected a number above 0, found 0"),
    (("--rate", "inf"), "--rate: expected a number above 0, found inf"),
    (("--floor", "0"), "--floor: expected a number of at least 1, found 0"),
    (("--most", "6"), "--most: expected a number of at most 5, found 6"),
    (("--mode", "medium"), "--mode: expected one of slow, fast, found 'medium'"),
    (("--words", "a", "c"), "--words: expected one of a, b, found 'c'"),
    (("--words",), "--words: expected one or more values, found none"),
    (("--size",), "--size: expected one value, found none"),
    (("--size", "1", "2"), "--size: expected one value, found 1 2"),
    (("--sise", "3"), "--sise is no flag of this program; did you mean --size?"),
    (("--sise=3",), "--sise is no flag of this program; did you mean --size?"),
    (("7",), "'7' stands alone; every value follows a flag"),
    (("--quiet", "yes"), "'yes' stands alone; every value follows a flag")])
def test_a_wrong_value_is_named_with_what_was_expected_and_found(flags, words):
    """Bug: an error that says neither which flag nor what it takes."""
    said = wrong(*flags, cls=Sampler, check=None)
    assert words in said
    assert len(said.splitlines()) == 3, "one sentence on one wrong flag"
    assert "nothing was written" in said


def test_wrong_flags_are_reported_all_at_once():
    """Bug: typos ignored (the official code), one error per run."""
    flags = ("--share", "2", "--size", "many", "--sise", "3", "--mode", "medium", "--words", "c")
    said = wrong(*flags, cls=Sampler, check=None)
    for name in ("--share:", "--size:", "--sise is", "--mode:", "--words:"):
        assert said.count(name) == 1
    assert len(said.splitlines()) == 7


@pytest.mark.parametrize("typo", (("--lamda", "0.3"), ("--arms", "wmss", "joint", "frozen")))
def test_the_values_of_a_mistyped_flag_are_no_second_error(typo):
    """Bug: "unknown argument 0.3" after "unknown argument --lamda"."""
    said = wrong(*typo, "--clip", "1")
    assert f"{typo[0]} is no flag of this program; did you mean " in said
    assert "stands alone" not in said and len(said.splitlines()) == 3
    said = wrong("--lam", "0.5", *typo, "--clip", "0")
    assert "--clip: expected a number above 0, found 0" in said


def test_a_flag_may_not_be_cut_short():
    """Bug: --over taken for --overwrite."""
    assert "--over is no flag of this program; did you mean --overwrite?" in wrong("--over")


def test_a_flag_that_is_near_to_none_gets_no_suggestion():
    """Bug: the dashes made --out near to --any-count."""
    assert "--out is no flag of this program\n" in wrong("--out") + "\n"


def test_what_was_given_is_known():
    """Bug: a default taken for a wish of the user's."""
    cfg, given = parse(Config, ["--lam", "0.5", "--no-compile"], check=None)
    assert given == {"lam", "compile"} and cfg.compile is False
    assert parse(Config, [], check=None)[1] == set() and parse(Config, [])[0].compile is None


def test_what_does_not_fit_together_is_said_at_once_with_all_else():
    """Bug: a second round of errors when the first ones are mended."""
    def check(cfg, given):
        return [f"size {cfg.size} and floor {cfg.floor} do not fit"] if cfg.size < cfg.floor else []

    assert "do not fit" in wrong("--size", "1", cls=Sampler, check=check)
    said = wrong("--size", "1", "--mode", "medium", cls=Sampler, check=check)
    assert "do not fit" in said and "--mode" in said


# -------------------------------------------------------------------------------------------------
# fields of one's own


@dataclass
class Forked(Config):
    my_temp: float = 1.0
    my_words: list[str] = arg(["a"])
    my_switch: bool = False


def test_a_field_without_a_comment_is_a_flag_at_once(capsys):
    """Bug: a KeyError at every start, because the new field has no comment."""
    cfg = read("--my-temp", "2.5", "--lam", "0.3", cls=Forked)
    assert (cfg.my_temp, cfg.lam, cfg.my_words, cfg.my_switch) == (2.5, 0.3, ["a"], False)
    assert read("--my-switch", "--my-words", "x", "y", cls=Forked).my_words == ["x", "y"]
    said = wrong("--my-temp", "warm", "--my-tepm", "1", cls=Forked)
    assert "--my-temp: expected a number, found 'warm'" in said
    assert "--my-tepm is no flag of this program; did you mean --my-temp?" in said
    page = help_of(lambda: read("-h", cls=Forked), capsys)
    assert "--my-temp X" in page and "(default 1.0)" in page
    made = make_dataclass("Made", [("my_temp", float, 1.0), ("steps", int, 3)])
    assert vars(read("--my-temp", "0.1", cls=made, check=None)) == dict(my_temp=0.1, steps=3)


# -------------------------------------------------------------------------------------------------
# help


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def help_of(main, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 0
    return capsys.readouterr().out


def test_help_shows_every_flag_with_its_line_and_default(capsys):
    """Bug: a field that is no flag, a default that is not the one that runs."""
    page = help_of(lambda: train_wmss.main(["-h"]), capsys)
    flat = " ".join(page.split())
    for f in fields(Config):
        assert re.search(rf"^  --{f.name.replace('_', '-')}\b", page, re.M), f.name
        default = getattr(Config(), f.name)
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            after = flat.partition(f" {flag_of(f.name)} ")[2]
            text = f.metadata.get("text")
            words = f"{default}" if text is None else f"{default}, of text {text}"
            assert f"(default {words})" in after, f.name
    assert "weight of the strong logits in the mix (eq. 5) (default 0.5)" in flat
    assert "--no-compile" in page


def test_help_comes_in_groups_and_fits_a_terminal(capsys):
    """Bug: 70 flags in one heap, lines that a terminal breaks, a default shown as [[]]."""
    page = help_of(lambda: train_wmss.main(["-h"]), capsys)
    assert max(map(len, page.splitlines())) <= 80
    headings = re.findall(r"^(\w[^\n]*):$", page, re.M)
    assert len(headings) >= 5 and any("WMSS" in heading for heading in headings)
    assert "[[]]" not in page and "[]" not in page and "None" not in page and "==" not in page
    assert "%%" not in page


def test_help_of_entropy_fits_a_terminal(capsys):
    """Bug: lines that a terminal breaks."""
    page = help_of(lambda: entropy.main(["-h"]), capsys)
    assert max(map(len, page.splitlines())) <= 80 and "--show" in page


# -------------------------------------------------------------------------------------------------
# presets


def test_flags_beat_the_preset_and_the_preset_beats_the_defaults():
    """Bug: a preset that overwrites what the user typed."""
    smoke = read("--preset", "smoke", "--dim", "32")
    assert smoke.dim == 32 and smoke.corpus == 600 != Config().corpus
    assert read("--dim", "32", "--preset", "smoke").dim == 32


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_whole(name):
    """Bug: a preset whose values the flags refuse, or which are read and not used."""
    consent = []
    if name == "mistakes-code":         # that a model's programs may run is said by hand, each time
        with pytest.raises(ValueError, match="pass --allow-code-execution"):
            parse(Config, ["--preset", name], check=check_flags)
        consent = ["--allow-code-execution"]
    cfg, given = parse(Config, ["--preset", name, *consent], check=check_flags)
    expected = {"preset", "allow_code_execution"} if consent else {"preset"}
    assert cfg.preset == name and given == expected
    words = preset_words(name)
    flags = [word for word in words if word.startswith("--")]
    assert len(flags) == len(set(flags)) >= 5
    for flag in flags:
        assert flag in {flag_of(f.name) for f in fields(Config)}
    direct, _ = parse(Config, [*words, *consent], check=check_flags)
    assert vars(direct) | dict(preset=name) == vars(cfg)
    assert vars(cfg) != vars(Config(preset=name)) and preset_notes(name)


def test_presets_of_real_models_have_the_papers_settings():
    """Bug: a preset that reproduces another method under the paper's name."""
    for name in NAMES:
        cfg = read("--preset", name, check=None)
        assert (cfg.lam, cfg.gap, cfg.weights, cfg.weak) == (0.5, "sample", "code", "joint")
        if cfg.base:
            rates = (cfg.wmss_lr, cfg.joint_lr, cfg.mask_lr, cfg.sft_steps_lr, cfg.sft_flops_lr)
            assert rates == 5 * (1e-5,)
    paper = read("--preset", "qwen3-4b-am")
    assert paper.system == "paper" and paper.batch_size == 512 and paper.max_len == 4096


def test_a_preset_of_ones_own_is_a_file_and_is_printed(run, tmp_path, capsys):
    """Bug: a preset that only the repository can hold, or whose reasons nobody sees."""
    file = tmp_path / "mine.txt"
    file.write_text("# My settings:\n# a try.\n--dim 24   # wider # than tiny\n\n--arm wmss joint\n"
                    "--system 'Think twice.' --no-compile\n")
    assert preset_words(str(file)) == ["--dim", "24", "--arm", "wmss", "joint", "--system",
                                       "Think twice.", "--no-compile"]
    cfg = read("--preset", str(file), "--arm", "wmss")
    assert (cfg.dim, cfg.arm, cfg.system, cfg.compile) == (24, ["wmss"], "Think twice.", False)
    run("--preset", str(file), "--stages", "base", "--base-steps", "1", "--dim", "8")
    said = capsys.readouterr().out
    assert f"preset {file}: My settings: a try." in said
    assert "dim 8" in said and "arm wmss joint" in said


def test_a_wrong_preset_is_named():
    """Bug: FileNotFoundError; a flag of a preset file that does not exist, passed over."""
    said = wrong("--preset", "somke", "--lam", "2")
    assert f"--preset: expected one of {', '.join(NAMES)}, or a file of flags" in said
    assert "found 'somke'" in said and "--lam: expected" in said


def test_of_a_list_that_is_given_twice_the_user_is_told(monkeypatch, capsys):
    """Bug: half of the data gone without a word, as the last --data wins; a command to go on with
    that names its arms twice."""
    assert read("--arm", "wmss", "--lam", "0.3", "--arm=joint").arm == ["joint"]
    assert "--arm is given twice: the last one counts" in capsys.readouterr().err
    assert read("--arm", "wmss", "joint", "--lam", "0.3", "--lam", "0.4").lam == 0.4
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["a.py", "--arm", "wmss", "joint", "--lr=1", "--resume"])
    assert stop.command("--arm", "joint", "--lr", "2") == "python a.py --arm joint --lr 2"


def test_wrong_flags_in_a_preset_are_named(tmp_path):
    """Bug: a typo in a file that is silently left out; a preset in a preset, too."""
    (tmp_path / "two.txt").write_text("--preset smoke\n--lam 0.7\n")
    assert "two.txt names a preset" in wrong("--preset", str(tmp_path / "two.txt"))
    file = tmp_path / "mine.txt"
    file.write_text("--lamda 0.3\n--clip 0\n")
    said = wrong("--preset", str(file), "--seed", "-1")
    for words in ("--lamda is no flag of this program", "--clip: expected", "--seed: expected"):
        assert words in said


# -------------------------------------------------------------------------------------------------
# errors become one sentence


def test_an_error_of_the_users_making_is_one_sentence(monkeypatch):
    """Bug: a traceback of 40 lines about a file name; an error of ours that is hidden as one."""
    monkeypatch.delenv("WMSS_TRACEBACK", raising=False)

    @program("tool")
    def main(error):
        raise error

    for error, said in ((ValueError("expected a, found b"), "tool: expected a, found b"),
                        (ValueError("tool: expected a"), "tool: expected a"),
                        (FileNotFoundError(2, "No such file", "x.pt"), "x.pt")):
        with pytest.raises(SystemExit, match=re.escape(said)) as e:
            main(error)
        assert isinstance(e.value.code, str) and e.value.code.startswith("tool: ")
    for ours in (KeyError("x"), RuntimeError("x"), AssertionError("x")):
        with pytest.raises(type(ours)):
            main(ours)
    monkeypatch.setenv("WMSS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="expected a"):
        main(ValueError("expected a"))


def test_the_program_ends_with_the_sentences_and_status_1(tmp_path, monkeypatch):
    """Bug: typos ignored (the official code), a bad value noticed after an hour, a status of 0."""
    monkeypatch.chdir(tmp_path)
    said = refuse("--lamda", "0.3", "--lam", "2", "--weak", "melted", "--clean", "many",
                  "--clip", "nan", "--resume", "stray")
    assert said.startswith("train_wmss: these flags cannot be used:")
    for words in ("--lamda is no flag of this program; did you mean --lam?",
                  "--lam: expected a number from 0 to 1, found 2",
                  "--weak: expected one of joint, frozen, found 'melted'",
                  "--clean: expected a whole number, found 'many'",
                  "--clip: expected a number above 0, found nan"):
        assert words in said, words
    assert "'0.3'" not in said
    assert "'stray' stands alone" in refuse("--resume", "stray")
    assert os.listdir(tmp_path) == []
