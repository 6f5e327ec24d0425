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
import math
import os
import shlex
from typing import Literal, get_args, get_origin, get_type_hints

PRESETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "presets")


def arg(default, help="", *, low=None, high=None, above=None, choices=None, group=None):
    """A dataclass field that carries what its flag needs.

    help: one line for -h. low, high: smallest and largest value; above: it must be larger.
    choices: the words that are allowed. group: the heading in -h from this field on.
    """
    about = dict(help=help, low=low, high=high, above=above, choices=choices, group=group)
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


class Flags:
    """The flags of a dataclass: what each is called, what it takes, and what its value means."""

    def __init__(self, cls):
        self.fields = {f.name: f for f in dataclasses.fields(cls)}
        self.types = get_type_hints(cls)
        self.defaults = cls()

    def is_list(self, name):
        return get_origin(self.types[name]) is list

    def is_switch(self, name):
        return self.types[name] in (bool, bool | None)

    def kind(self, name):
        """int, float or str: what one word of the flag is read as."""
        words = self.types[name]
        if self.is_list(name):
            words = get_args(words)[0]
        for kind in (int, float):
            if words in (kind, kind | None):
                return kind
        return str

    def choices(self, name):
        if get_origin(self.types[name]) is Literal:
            return get_args(self.types[name])
        return self.fields[name].metadata.get("choices")

    def read(self, name, word):
        """One word of the command line -> its value; ValueError, in plain words, if it has none."""
        kind, about = self.kind(name), self.fields[name].metadata
        if self.choices(name) and word not in self.choices(name):
            expected = ", ".join(self.choices(name))
            raise ValueError(f"{flag_of(name)}: expected one of {expected}, found {word!r}")
        try:
            value = kind(word)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise ValueError(f"{flag_of(name)}: expected {expected}, found {word!r}") from None
        if kind is not str and not self.is_within(value, about):
            raise ValueError(f"{flag_of(name)}: expected {self.range_of(about)}, found {word}")
        return value

    def is_within(self, value, about):
        low, high, above = (about.get(key) for key in ("low", "high", "above"))
        if not math.isfinite(value):
            return low is None and high is None and above is None
        return not ((low is not None and value < low) or (high is not None and value > high)
                    or (above is not None and value <= above))

    def range_of(self, about):
        """
        >>> Flags.range_of(None, dict(low=0, high=1))
        'a number from 0 to 1'
        """
        low, high, above = (about.get(key) for key in ("low", "high", "above"))
        if above is not None:
            return f"a number above {above}"
        if low is None:
            return f"a number of at most {high}"
        if high is not None:
            return f"a number from {low} to {high}"
        return f"a number of at least {low}"

    def parser(self, description):
        parser = argparse.ArgumentParser(description=description, formatter_class=_Help,
                                         allow_abbrev=False, usage="%(prog)s [--flag value ...]")
        group = parser
        for name, field in self.fields.items():
            about = field.metadata
            if about.get("group"):
                group = parser.add_argument_group(about["group"])
            default = getattr(self.defaults, name)
            text = about.get("help") or "a field of your own"
            if default not in (None, "", []):
                shown = " ".join(map(str, default)) if isinstance(default, list) else default
                text += f" (default {shown})"
            how = dict(dest=name, default=argparse.SUPPRESS, help=text.replace("%", "%%"))
            if self.is_switch(name):
                group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, **how)
                continue
            shown = "{" + ",".join(self.choices(name)) + "}" if self.choices(name) else None
            if shown is None or len(shown) > 30:
                shown = {int: "N", float: "X", str: "TEXT"}[self.kind(name)]
                if self.choices(name):
                    how["help"] += "; one or more of " if self.is_list(name) else "; one of "
                    how["help"] += ", ".join(self.choices(name))
            if self.is_list(name):
                shown += " ..."
            group.add_argument(flag_of(name), nargs="*", metavar=shown, **how)
        return parser


def parse(cls, argv=None, *, description="", check=None):
    """The command line (default: sys.argv) -> (cls object, set of the fields that were given).

    A field named `preset` names a file of flags, in plumbing/presets or anywhere; flags of the
    command line go before those of the preset, and those before the defaults. check(cfg, given)
    yields sentences on values that do not fit each other. Whatever is wrong is reported at once,
    in one ValueError; nothing has been written by then.
    """
    flags, problems = Flags(cls), []
    given = _read(flags, flags.parser(description), argv, problems)
    values = dict(given)
    preset = given.get("preset", getattr(flags.defaults, "preset", ""))
    if preset:
        try:
            words = preset_words(preset)
            values = _read(flags, flags.parser(""), words, problems) | given
        except ValueError as e:
            problems.append(str(e))
    cfg = cls(**values)
    if check is not None and not problems:
        problems += check(cfg, set(given))
    if problems:
        raise ValueError("\n  ".join(["these flags cannot be used:", *problems]) +
                         "\n-h explains every flag; nothing was written")
    return cfg, set(given)


def _read(flags, parser, argv, problems):
    """Words -> {field: value}; what is wrong is appended to problems."""
    given, unknown = parser.parse_known_args(argv)
    values = {}
    for name, words in vars(given).items():
        if flags.is_switch(name):
            values[name] = words
            continue
        try:
            if flags.is_list(name):
                values[name] = [flags.read(name, word) for word in words]
                if not words:
                    raise ValueError(f"{flag_of(name)}: expected one or more values, found none")
            elif len(words) != 1:
                found = " ".join(words) or "none"
                raise ValueError(f"{flag_of(name)}: expected one value, found {found}")
            else:
                values[name] = flags.read(name, words[0])
        except ValueError as e:
            problems.append(str(e))
    known = [flag_of(name) for name in flags.fields]
    after_unknown = False
    for word in unknown:
        if not word.startswith("--"):
            if not after_unknown:               # the value of a mistyped flag was named with it
                problems.append(f"{word!r} stands alone; every value follows a flag, as in "
                                "--lam 0.5")
            continue
        after_unknown = "=" not in word
        close = difflib.get_close_matches(word.split("=")[0], known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"{word.split('=')[0]} is no flag of this program{hint}")
    return values


def preset_words(preset):
    """The words of a preset file: one flag with its values a line, the reason behind a #."""
    path = os.path.join(PRESETS, preset + ".txt")
    if not os.path.isfile(path):
        path = preset
    try:
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
    except OSError:
        there = ", ".join(sorted(name[:-4] for name in os.listdir(PRESETS)))
        raise ValueError(f"--preset: expected one of {there}, or a file of flags, "
                         f"found {preset!r}") from None
    words = []
    for line in lines:
        words += shlex.split(line, comments=True)
    return words


def preset_notes(preset):
    """What a preset says about itself: its lines that begin with #, as one text."""
    path = os.path.join(PRESETS, preset + ".txt")
    if not os.path.isfile(path):
        path = preset
    with open(path, encoding="utf-8") as f:
        notes = [line.lstrip("# ").rstrip() for line in f if line.startswith("#")]
    return " ".join(notes)


def program(name):
    """Decorator of a main(): a ValueError or OSError inside ends the program with one sentence.

    The sentence is "name: what was expected, what was found, the way out". With WMSS_TRACEBACK=1 in
    the environment the error is shown as Python shows it, with the lines that led to it.
    """
    def decorate(main):
        @functools.wraps(main)
        def guarded(*args, **kwargs):
            try:
                return main(*args, **kwargs)
            except (ValueError, OSError) as e:
                if os.environ.get("WMSS_TRACEBACK"):
                    raise
                message = str(e)
                if not message.startswith(name):
                    message = f"{name}: {message}"
                raise SystemExit(message) from None
        return guarded
    return decorate
