"""Scores on math problems: prompt -> greedy answers -> extracted answer -> exact equality -> accuracy with its interval.

Evaluation as in the paper's section 4.1 (greedy, pass@1); here on the built-in task's held-out problems.

    python eval_math.py out/toy/wmss.pt                       # 2,100 test problems, accuracy per family
    python eval_math.py out/toy/sft.pt --split val --n 700 --out sft-val.jsonl
"""

import argparse
import json
import math
import re
from fractions import Fraction

from data import END, FAMILIES, fingerprint, toy_encoding, toy_math
from model import load_checkpoint, write_atomically

NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+"


def extract_answer(text):
    """The final answer in a completion: after the last ';' or '####', else the last number; None where there is none.

    >>> extract_answer("8+7=15,5+6+1=12;125"), extract_answer("so 7 apples.\\n#### 1,200"), extract_answer("no idea")
    ('125', '1,200', None)
    """
    tail = re.split(r"####|;", text)[-1]
    numbers = re.findall(NUMBER, tail)
    return numbers[-1] if numbers else None


def is_equal(pred, gold):
    """Are two answers the same number, exactly? Thousands separators, decimals and fractions are read; no floats.

    >>> is_equal("1,200", "1200"), is_equal("0.5", "1/2"), is_equal("0.33", "1/3"), is_equal(None, "1")
    (True, True, False, False)
    """
    def value(text):
        text = (text or "").strip().replace(",", "")
        try:
            return Fraction(text) if len(text) < 1000 else None
        except (ValueError, ZeroDivisionError):
            return None

    pred, gold = value(pred), value(gold)
    return pred is not None and pred == gold


def wilson(correct, n, z=1.959963984540054):
    """Wilson's 95 % interval of a share, (low, high); (0, 1) for n = 0. Stays inside [0, 1], honest for 0 and n of n.

    >>> [round(x, 8) for x in wilson(660, 1319)]
    [0.47343385, 0.5273221]
    """
    if n == 0:
        return 0.0, 1.0
    p, d = correct / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    centre = (p + z * z / (2 * n)) / d
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))        # rounding must not exclude p itself


def score(model, enc, problems, *, max_new_tokens=64, batch_size=700, weak=None, lam=1.0):
    """Greedy answers to every problem -> one row each: id, family, prompt, gold, completion, answer, correct, truncated.

    weak, lam: decode from lam * z_model + (1 - lam) * z_weak (the fused model) instead. Problems of similar length are
    decoded together; rows come back in the order of the problems.
    """
    prompts = [enc.encode_ordinary(p.prompt) for p in problems]
    rows, order = [None] * len(problems), sorted(range(len(problems)), key=lambda i: len(prompts[i]))
    for k in range(0, len(order), batch_size):
        ids = order[k:k + batch_size]
        new = model.generate([prompts[i] for i in ids], max_new_tokens, stop_ids=[enc.encode_single_token(END)],
                             weak=weak, lam=lam)
        for i, tokens in zip(ids, new):
            p, text = problems[i], enc.decode(tokens)
            answer = extract_answer(text)
            rows[i] = dict(id=i, family=p.family, prompt=p.prompt, gold=p.answer, completion=text, answer=answer,
                           correct=is_equal(answer, p.answer), truncated=len(tokens) == max_new_tokens)
    return rows


def summary(rows):
    """Rows of score() -> accuracy, n, Wilson interval low/high, shares truncated and without answer, accuracy per family."""
    share = lambda xs: sum(xs) / len(xs)
    low, high = wilson(sum(r["correct"] for r in rows), len(rows))
    families = {f: [r["correct"] for r in rows if r["family"] == f] for f in dict.fromkeys(r["family"] for r in rows)}
    return dict(accuracy=share([r["correct"] for r in rows]), n=len(rows), low=low, high=high,
                truncated=share([r["truncated"] for r in rows]), no_answer=share([r["answer"] is None for r in rows]),
                families={f: share(xs) for f, xs in families.items()})


def write_rows(path, rows):
    write_atomically(path, lambda f: f.write("".join(json.dumps(r) + "\n" for r in rows).encode()))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("checkpoint", help=".pt file of train_wmss.py")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--n", type=int, default=2100, help="problems")
    parser.add_argument("--batch", type=int, default=700, help="prompts decoded together")
    parser.add_argument("--out", help="write one JSONL row per problem here")
    args = parser.parse_args(argv)
    enc = toy_encoding()
    model, _ = load_checkpoint(args.checkpoint, tokenizer=fingerprint(enc))
    try:
        problems = toy_math(args.split, args.n)
    except ValueError as e:
        raise SystemExit(f"eval_math: {e}") from None
    rows = score(model, enc, problems, batch_size=args.batch)
    if args.out:
        write_rows(args.out, rows)
    s = summary(rows)
    print("  ".join(f"{f} {s['families'][f]:.1%}" for f in FAMILIES if f in s["families"]))
    print(f"accuracy {s['accuracy']:.2%} of {s['n']:,} (95 % interval {s['low']:.2%} - {s['high']:.2%}) | "
          f"truncated {s['truncated']:.1%} | no answer {s['no_answer']:.1%}")


if __name__ == "__main__":
    main()
