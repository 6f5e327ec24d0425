"""Text that is mostly Python: where the code in it ends, what it defines, what it needs."""

import ast
import re
import textwrap
import warnings

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom,
               ast.Assign, ast.AnnAssign)


def fences_of(text):
    """Chat answer -> (what stands before its first fence, the fenced blocks).

    A fence that nothing closes ends with the text.
    """
    before, blocks, fence, margin = "", [], "", 0
    for line in text.splitlines(keepends=True):
        mark = re.match(r"(\s*)(```+|~~~+)(.*)", line)
        # deeper by four spaces a fence is part of the code, of a docstring say (CommonMark)
        closes = mark and not mark[3].strip() and len(mark[1]) <= margin + 3
        if fence and closes and mark[2].startswith(fence):
            fence = ""
        elif fence:
            blocks[-1] += line
        elif mark:
            fence, margin = mark[2], len(mark[1])
            blocks.append("")
        elif not blocks:
            before += line
    return before, blocks


def extract(text: str, prompt: str, entry_point: str) -> tuple[str, str]:
    """As extract_code, and where the code was found: "fence" or "text"."""
    text = text.rpartition("</think>")[2].removeprefix(prompt)
    name = re.escape(entry_point)
    own = rf"(async\s+)?(def|class)\s+{name}\b|^{name}\s*=[^=]"
    imports = rf"^from\s.*\bimport\b.*\b{name}\b"
    function = re.compile(rf"^[ \t]*{own}|{imports}", re.M)
    before, blocks = fences_of(text)
    body = re.compile(r"^(class\b.*)(?:\n(?:[ \t].*)?)*", re.M)      # its methods are others
    outlines = [body.sub(r"\1\n", textwrap.dedent(block)) for block in blocks]
    ways = ((rf"^[ \t]*{own}", outlines), (imports, outlines), (function.pattern, blocks))
    found = [[b for b, seen in zip(blocks, texts, strict=True) if re.search(way, seen, re.M)]
             for way, texts in ways]
    with_function = next(filter(None, found), [])
    if blocks and not with_function:
        # a model that goes on in a block which its prompt opened closes it behind the function
        goes_on = prompt and re.match(r"\s*[ \t]\S", before)
        if function.search(before) or goes_on:
            blocks, lines = [], (prompt + text).split("\n")
            n_before = (prompt + before).count("\n")
            if not longest_program(lines, n_before)[1]:      # else it is part of a docstring
                text = before
    if blocks:
        code = textwrap.dedent(with_function[-1] if with_function else blocks[0])
        if function.search(prompt) and not function.search(code):
            code = textwrap.indent(code, "    ")       # a bare body, to fit below the prompt's def
        code = "\n" + code
    else:
        code = text
    if prompt.rstrip().endswith(":") and re.match(r"\s*\n\S|\S", code):
        code = "    pass\n" + code                     # a whole function: the prompt's has no body
    return code, "fence" if blocks else "text"


def longest_program(lines, least):
    """The most lines, over `least`, that are Python: (syntax tree, their number), or (None, 0).

    Lines are left away back to where a statement begins at column 0, so that half a function is
    not taken for a shorter one.
    """
    end = len(lines)
    while end > least:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")              # an unknown \escape in a string
                return ast.parse("\n".join(lines[:end]) + "\n"), end
        except SyntaxError as e:
            end = min(e.lineno or 1, end) - 1
        except (ValueError, RecursionError, MemoryError):    # null bytes, or nested too deeply
            return None, 0
        while end > least and (not lines[end].strip() or lines[end][0] in " \t#"):
            end -= 1
    return None, 0


def names_in(node):
    """(names that are bound anywhere in the code, names that it reads)."""
    bound, read = set(), set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            group = read if isinstance(part.ctx, ast.Load) else bound
            group.add(part.id)
        elif isinstance(part, DEFINITIONS[:3]):
            bound.add(part.name)
        elif isinstance(part, ast.alias):
            bound.add((part.asname or part.name).partition(".")[0])
        elif isinstance(part, ast.arg):
            bound.add(part.arg)
    return bound, read


def defines(node):
    """The names that a top-level statement defines."""
    return {node.name} if isinstance(node, DEFINITIONS[:3]) else names_in(node)[0]


def is_prose(node):
    """Does nothing when run, or only fails: a word or a sentence that happens to be Python."""
    if isinstance(node, ast.AnnAssign):
        return node.value is None
    return isinstance(node, ast.Expr) and not isinstance(node.value, (ast.Call, ast.Await))


def needed(kept, later):
    """Those of the statements `later` that define what the statements `kept` read, and so on."""
    bound, read = names_in(ast.Module(kept))
    later = [node for node in later if isinstance(node, DEFINITIONS)]
    back = []
    while True:
        more = [node for node in later if defines(node) & (read - bound)]
        if not more:
            return sorted(back, key=lambda node: node.lineno)
        bound |= defines(more[0])
        read |= names_in(more[0])[1]
        back.append(more[0])
        later.remove(more[0])
