"""Word problems of one to a few steps (MAWPS and ASDiv-A, as published with SVAMP by Patel et al.
2021): questions with placeholders and prefix equations -> questions, and worked equations.

    from words import read_words
    train, val, test = read_words("mawps_asdiv/train.csv")

The row "Tom has number0 nuts and gets number1 . How many has he ?", "6.0 3.0", "+ number0 number1"
becomes the prompt "Tom has 6 nuts and gets 3 . How many has he ?" and the completion "6 + 3 = 9".
"""

import csv
import random
import re

from data import Problem

FOLDS = (200, 500)                      # problems of val and test; train has the rest


def spell(x):
    """A number as people write it.

    >>> spell(24.0), spell(0.25), spell(10 / 3)
    ('24', '0.25', '3.3333')
    """
    return f"{x:.4f}".rstrip("0").rstrip(".")


def work(equation, numbers):
    """A prefix equation -> (its value, its steps as text in the order of computing).

    >>> work("/ + number0 number1 number0", [8.0, 16.0])
    (3.0, ['8 + 16 = 24', '24 / 8 = 3'])
    """
    stack, steps = [], []
    for word in reversed(equation.split()):             # operands are on the stack, left on top
        if word.startswith("number"):
            stack.append(numbers[int(word[6:])])
        elif word not in "+-*/":
            stack.append(float(word))
        else:
            a, b = stack.pop(), stack.pop()
            value = a / b if word == "/" else {"+": a + b, "-": a - b, "*": a * b}[word]
            steps.append(f"{spell(a)} {word} {spell(b)} = {spell(value)}")
            stack.append(value)
    (value,) = stack
    return value, steps


def masked(question):
    """What makes two questions the same: their words, whatever the numbers."""
    words = re.sub(r"number\d+|\d+(\.\d+)?", " N ", question.lower())
    return " ".join(re.findall(r"[a-zN]+", words))


def read_words(path):
    """The published CSV -> (train, val, test): lists of Problem, no question twice.

    Rows whose equation does not give the published answer to two digits behind the point are left
    out. The order is that of a fixed shuffle; nothing in it depends on a seed of training.
    """
    found = {}
    with open(path, newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            numbers = [float(x) for x in row["Numbers"].split()]
            value, steps = work(row["Equation"], numbers)
            if not steps or abs(value - float(row["Answer"])) > 0.01:
                continue
            question = row["Question"]
            for i in reversed(range(len(numbers))):
                question = question.replace(f"number{i}", spell(numbers[i]))
            problem = Problem("words", question, "; ".join(steps), spell(value),
                              id=f"words/{len(found)}")
            found.setdefault(masked(row["Question"]), problem)
    problems = list(found.values())
    random.Random(0).shuffle(problems)
    n_val, n_test = FOLDS
    return problems[n_val + n_test:], problems[:n_val], problems[n_val:n_val + n_test]
