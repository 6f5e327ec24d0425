"""The text of a test: what is written into it before it runs, and what it imports."""

import sys

ONLY_TREE = 0x400                               # ast.PyCF_ONLY_AST, without importing ast


def statement(text):
    return compile(text, "<test>", "exec", ONLY_TREE).body[0]


SETTLE, SETTLE_CALL = statement("__settle__()"), statement("__settle__(True)")


def rewrite(node):
    """A test with __settle__() behind each statement, and __same__(a, b) for `a is b`.

    The candidate works on copies. A statement of the test sees an argument unchanged while it
    runs, and changed, if the function changed it, from then on.
    """
    name = type(node).__name__
    for field in node._fields:
        value = getattr(node, field, None)
        if isinstance(value, list):
            setattr(node, field, rewrite_all(value, node, field))
        elif hasattr(value, "_fields"):
            setattr(node, field, rewrite(value))
    if name == "Compare" and len(node.ops) == 1 and type(node.ops[0]).__name__ in ("Is", "IsNot"):
        sides = [node.left, node.comparators[0]]
        negated = "not " if type(node.ops[0]).__name__ == "IsNot" else ""
        same = statement(f"{negated}__same__(0, 0)").value
        (same.operand if negated else same).args = sides
        return same
    return node


def rewrite_all(nodes, parent, field):
    new = []
    is_block = bool(nodes) and hasattr(nodes[0], "lineno") and field in ("body", "orelse",
                                                                         "finalbody")
    is_block = is_block and type(parent).__name__ not in ("Module", "ClassDef", "Lambda", "IfExp")
    if is_block:
        new.append(SETTLE)
    for node in nodes:
        new.append(rewrite(node) if hasattr(node, "_fields") else node)
        kind = type(node).__name__
        if type(parent).__name__ == "ClassDef":
            continue
        if kind == "Expr" and type(node.value).__name__ == "Call":
            new.append(SETTLE_CALL)
        elif kind in ("Assign", "AugAssign", "AnnAssign", "Assert"):
            new.append(SETTLE)
    return new


def test_frames(frame):
    """How many functions of the test are running, its own text included."""
    n = 0
    while frame:
        n += frame.f_code.co_filename == "<test>"
        frame = frame.f_back
    return n


def missing_modules(tree):
    """Top-level modules which a test imports and this machine does not have."""
    names, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        kind = type(node).__name__
        if kind == "Import":
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif kind == "ImportFrom" and node.module and not node.level:
            names.add(node.module.partition(".")[0])
        for field in node._fields:
            value = getattr(node, field, None)
            nodes += [v for v in (value if isinstance(value, list) else [value])
                      if hasattr(v, "_fields")]
    others = names - set(sys.stdlib_module_names)
    if not others:
        return []
    from importlib.util import find_spec
    return sorted(name for name in others if find_spec(name) is None)
