"""One colour for each arm and each gap code, the same on every page and in every figure.

A colour is a pair, for white paper and for the dark page: at least 4.5:1 on its paper and on the
cards, which no one colour has on both. The table is read as classes of CSS: class="joint" sets
`color`, and what is drawn there takes `currentColor`.
"""

PAPER = {"paper": ("#ffffff", "#0f141b"), "card": ("#f3f5f8", "#19212b"),
         "ink": ("#1d2430", "#e6e9ee"), "soft": ("#566072", "#a3adbb"),
         "grid": ("#d5dae2", "#333e4c"), "link": ("#0b5cad", "#78b4f5")}
ARMS = {"base": ("#7e5d30", "#be9153"), "sft": ("#425767", "#91a8b9"),
        "sft-steps": ("#6a6a6a", "#939393"), "sft-flops": ("#0f6fbe", "#3fa0ef"),
        "joint": ("#ce2f1d", "#e97265"), "wmss": ("#127d40", "#1cc465"),
        "wmss-both": ("#127d40", "#1cc465"), "wmss-mask": ("#644cc3", "#9d8dd9"),
        "frozen": ("#9c5600", "#ff9616"), "permuted": ("#af2c95", "#dd76c8"),
        "temperature": ("#067878", "#0bc9c9"), "smoothing": ("#547415", "#93cb24"),
        "weights-only": ("#1f4edc", "#6d8cea"), "weak": ("#8e5f44", "#c39981"),
        "fused": ("#ab2b4b", "#e38ea3"), "dft": ("#8d2bae", "#ca85e1"),
        "focal": ("#765f03", "#ecbe06"), "gce": ("#216251", "#39ac8f"),
        "confidence": ("#d41876", "#ee64a9"), "distilled": ("#0f6b8a", "#37bce9"),
        "averaged": ("#3a5e28", "#74b654"), "reweighted": ("#8a1f4d", "#e0709f")}
CODES = {"settled": ("#656b72", "#9ba0a6"), "consolidating": ("#127d40", "#1cc465"),
         "regressing": ("#ce2f1d", "#e97265"), "hard": ("#9c5600", "#ff9616")}
# joint at lambda 0.3, 0.5, 0.7, 0.9
LAMBDAS = {"lam3": ("#d02c1a", "#e4604f"), "lam5": ("#ac2718", "#ec8277"),
           "lam7": ("#7a1c11", "#f4b3ab"), "lam9": ("#45100a", "#fbe0dd")}
TABLE = PAPER | ARMS | CODES | LAMBDAS


def css(names=tuple(TABLE)):
    """Classes of these names, and --variables of them, by day and by night."""
    modes = []
    for mode in (0, 1):
        variables = ";".join(f"--{name}:{TABLE[name][mode]}" for name in names)
        classes = "".join(f".{name}{{color:{TABLE[name][mode]}}}" for name in names)
        modes.append(f":root{{{variables}}}{classes}")
    return f"{modes[0]}@media (prefers-color-scheme:dark){{{modes[1]}}}"
