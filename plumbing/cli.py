"""The command line: a dataclass becomes flags, and whatever a user can mend becomes one sentence.

    @dataclass
    class Config:
        lam: float = arg(0.5, "weight of the strong logits in the mix (eq. 5)", low=0, high=1)
        my_temp: float = 1.0                # a field without arg() is a flag, too

    cfg, given = parse(Config)
"""

import argparse
import dataclasses
import difflib
import functools
import json
import math
import os
import shlex
import sys
import time
from typing import Literal, get_args, get_origin, get_type_hints

from plumbing.files import in_words

PRESETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "presets")


def arg(default, help="", *, low=None, high=None, above=None, choices=None, group=None,
        bare=None, text=None):
    """A dataclass field that carries what its flag needs.

    help: one line for -h. low, high: smallest and largest value; above: it must be larger.
    choices: the words that are allowed. group: the heading in -h from this field on.
    bare: the value of the flag alone, with no word behind it. text: the default of models of text,
    where the built-in tasks have another.
    """
    about = dict(help=help, low=low, high=high, above=above, choices=choices, group=group,
                 bare=bare, text=text)
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def flag_of(name):
    """
    >>> flag_of("sft_lr")
    '--sft-lr'
    """
    return "--" + name.replace("_", "-")


class _Help(argparse.RawDescriptionHelpFormatter):
    """The page of -h: 79 columns, and a flag that takes one value shows one.

    argparse would show [N ...] for each, because every flag may be given any number of values: a
    missing one is then reported by us, with whatever else is wrong, and not by argparse alone.
    """

    def __init__(self, prog):
        super().__init__(prog, max_help_position=26, width=79)

    def _format_args(self, action, default_metavar):
        return action.metavar or default_metavar


class Flag:
    """One field of a dataclass as a flag: what it is called, what it takes, what is allowed."""

    def __init__(self, field, hint):
        self.name, self.about = flag_of(field.name), field.metadata
        self.is_list = get_origin(hint) is list
        self.is_switch = hint in (bool, bool | None)
        one = get_args(hint)[0] if self.is_list else hint
        self.kind = next((kind for kind in (int, float) if one in (kind, kind | None)), str)
        self.choices = self.about.get("choices")
        if get_origin(hint) is Literal:
            self.choices = tuple(filter(None, get_args(hint)))

    def fits(self, value):
        """-> (does the number lie within the limits, what they are in words)"""
        low, high, above = (self.about.get(key) for key in ("low", "high", "above"))
        if above is not None:
            return above < value < math.inf, f"a number above {above}"
        if low is not None and high is not None:
            return low <= value <= high, f"a number from {low} to {high}"
        if low is not None:
            return low <= value < math.inf, f"a number of at least {low}"
        if high is not None:
            return -math.inf < value <= high, f"a number of at most {high}"
        return True, "a number"

    def read(self, words):
        """The words behind the flag -> its value; ValueError, in plain words, if they have none."""
        if self.is_list and words:
            return [self.read_one(word) for word in words]
        if self.about.get("bare"):
            if not words:
                return self.about["bare"]
            if words[0] not in self.choices:
                raise ValueError(f"{words[0]!r} stands alone; behind {self.name} stands one of "
                                 f"{', '.join(self.choices)}, or nothing")
        if len(words) != 1:
            wanted = "one or more values" if self.is_list else "one value"
            raise ValueError(f"{self.name}: expected {wanted}, found {' '.join(words) or 'none'}")
        return self.read_one(words[0])

    def read_one(self, word):
        if self.choices and word not in self.choices:
            raise ValueError(f"{self.name}: expected one of {', '.join(self.choices)}, "
                             f"found {word!r}")
        try:
            value = self.kind(word)
        except ValueError:
            expected = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"{self.name}: expected {expected}, found {word!r}") from None
        fits, expected = (True, "") if self.kind is str else self.fits(value)
        if not fits:
            raise ValueError(f"{self.name}: expected {expected}, found {word}")
        return value

    def add_to(self, group, dest, default):
        """Add it to an argparse group."""
        text = self.about.get("help") or "a field of your own"
        if default not in (None, "", []) and default is not False:
            shown = " ".join(map(str, default)) if isinstance(default, list) else default
            if self.about.get("text") is not None:
                shown = f"{shown}, of text {self.about['text']}"
            text += f" (default {shown})"
        how = dict(dest=dest, default=argparse.SUPPRESS)
        if self.is_switch:
            how["action"] = argparse.BooleanOptionalAction
        else:
            words = "{" + ",".join(self.choices or ()) + "}"
            if not self.choices or len(words) > 30:
                words = {int: "N", float: "X", str: "TEXT"}[self.kind]
                if self.choices:
                    text += "; of " + ", ".join(self.choices)
            how.update(nargs="*", metavar=words + " ..." if self.is_list else words)
        group.add_argument(self.name, help=text.replace("%", "%%"), **how)


def flags_of(cls):
    """{field: Flag} of a dataclass."""
    hints = get_type_hints(cls)
    return {f.name: Flag(f, hints[f.name]) for f in dataclasses.fields(cls)}


def parse(cls, argv=None, *, description="", check=None):
    """The command line (default: sys.argv) -> (cls object, set of the fields that were given).

    A field named `preset` names a file of flags, in plumbing/presets or anywhere; flags of the
    command line go before those of the preset, and those before the defaults. check(cfg, given)
    gives sentences on values that do not fit each other. Whatever is wrong is reported at once,
    in one ValueError; nothing has been written by then.
    """
    flags, defaults, problems = flags_of(cls), cls(), []
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help,
                                     allow_abbrev=False, usage="%(prog)s [--flag value ...]")
    group = parser
    for name, flag in flags.items():
        if flag.about.get("group"):
            group = parser.add_argument_group(flag.about["group"])
        flag.add_to(group, name, getattr(defaults, name))
    given = _read(flags, parser, argv, problems)
    values = {}
    preset = given.get("preset", getattr(defaults, "preset", ""))
    if preset:
        try:
            values = _read(flags, parser, preset_words(preset), problems)
            if values.pop("preset", ""):
                problems.append(f"--preset {preset} names a preset; write its flags into the file")
        except ValueError as e:
            problems.append(str(e) if str(e).startswith("--") else f"--preset {preset}: {e}")
    cfg = cls(**values | given)
    if check is not None:
        problems += check(cfg, set(given) | set(values))
    if problems:
        raise ValueError("\n  ".join(["these flags cannot be used:", *problems]) +
                         "\n-h explains every flag; nothing was written")
    return cfg, set(given)


def _read(flags, parser, argv, problems):
    """Words -> {field: value}; what is wrong is appended to problems."""
    found, unknown = parser.parse_known_args(argv)
    names = [word.split("=")[0] for word in (sys.argv[1:] if argv is None else argv)]
    for flag in flags.values():
        if flag.is_list and names.count(flag.name) > 1 and os.environ.get("RANK", "0") == "0":
            print(f"{flag.name} is given twice: the last one counts, with all its values behind it",
                  file=sys.stderr)
    values = {}
    for name, words in vars(found).items():
        try:
            values[name] = words if flags[name].is_switch else flags[name].read(words)
        except ValueError as e:
            problems.append(str(e))
    after_unknown = False
    for word in unknown:
        name, is_flag = word.split("=")[0], word.startswith("--")
        if is_flag:
            close = difflib.get_close_matches(name[2:], [f.name[2:] for f in flags.values()], 1)
            hint = f"; did you mean --{close[0]}?" if close else ""     # their dashes match always
            problems.append(f"{name} is no flag of this program{hint}")
            after_unknown = "=" not in word
        elif not after_unknown:                 # the value of a mistyped flag was named with it
            problems.append(f"{word!r} stands alone; every value follows a flag, as in --lam 0.5")
    return values


def preset_lines(preset):
    """The lines of a preset: a name in plumbing/presets, or a file of flags anywhere."""
    path = os.path.join(PRESETS, preset + ".txt")
    try:
        with open(path if os.path.isfile(path) else preset, encoding="utf-8-sig") as f:
            return f.read().splitlines()
    except OSError:
        there = ", ".join(sorted(name.removesuffix(".txt") for name in os.listdir(PRESETS)))
        raise ValueError(f"--preset: expected one of {there}, or a file of flags, "
                         f"found {preset!r}") from None


def preset_words(preset):
    """Its words: a flag with its values a line, the reason behind a #."""
    return shlex.split("\n".join(preset_lines(preset)), comments=True)


def preset_notes(preset):
    """What it says about itself: its lines that begin with #, as one text."""
    return " ".join(line.strip("# ") for line in preset_lines(preset) if line.startswith("#"))


def parser_of(doc, prog=None):
    """An argparse parser that shows the text as it is, and takes no flag that is cut short."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog, description=doc, formatter_class=form, allow_abbrev=False)


def tell_torchrun(message):
    """Leave a sentence where torchrun looks for a rank's error: it shows it last, below its own."""
    path, now = os.environ.get("TORCHELASTIC_ERROR_FILE"), str(int(time.time()))
    if path:
        more = {"py_callstack": message, "timestamp": now}
        with open(path, "w") as f:
            json.dump({"message": {"message": message, "extraInfo": more}}, f)


def program(name):
    """Decorator of a main(): a ValueError or OSError inside ends the program with one sentence.

    The sentence is "name: what was expected, what was found, the way out". With WMSS_TRACEBACK=1 in
    the environment the error is shown as Python shows it, with the lines that led to it. What all
    ranks refuse, rank 0 alone says: the others wait until torchrun ends them.
    """
    def decorate(main):
        @functools.wraps(main)
        def guarded(*args, **kwargs):
            try:
                return main(*args, **kwargs)
            except (ValueError, OSError) as e:
                if os.environ.get("WMSS_TRACEBACK"):
                    raise
                message = in_words(e)
                if not message.startswith(name):
                    message = f"{name}: {message}"
                if os.environ.get("RANK", "0") != "0":
                    time.sleep(5)
                tell_torchrun(message)
                raise SystemExit(message) from None
            except KeyboardInterrupt:           # train_wmss.py listens to signals itself
                print(f"\n{name}: stopped; what is written is kept, and the same command goes on "
                      "with it", file=sys.stderr)
                raise SystemExit(130) from None
        return guarded
    return decorate
