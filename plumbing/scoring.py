"""What eval_math.py and eval_code.py share beside the statistics: flags, files, model, prompts."""

import hashlib
import json
import math
import os
import re

from plumbing.benchmarks import GRADERS, SOURCES, parse_spec
from plumbing.cli import parser_of
from plumbing.code_benchmarks import EXPECTED
from plumbing.files import read_json, read_rows, sha256_of

SAMPLES = (".jsonl", ".jsonl.gz")       # what eval_code.py takes for answers, not for a model
CONSENT = "this runs code that a model wrote; pass --allow-code-execution if you want that"
# The paper's system prompt and lengths, as in its public repository (utils/prompts.py; the curly
# apostrophe is theirs too).
PAPER_SYSTEM = (
    "You are a helpful assistant. To answer the user’s question, you first think about the "
    "reasoning process and then provide the user with the answer. The reasoning process and answer "
    "are enclosed within <think> and <answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>.")
PAPER_TOKENS = {"aime25": 8192, "amc23": 8192}      # new tokens; 4,096 for the other sets


def asked(problem):
    """What a problem asks: one question, or the conversation so far as a list of messages."""
    return getattr(problem, "messages", ()) or problem.prompt


def chat(enc, system=None, raw=False):
    """wrap(question) -> the prompt that the model reads, by the template that training used: the
    tokenizer's own, else a plain one.

    question: a text, or messages, whose own system prompt takes the place of `system`. raw, or one
    message that is bare: where the tokenizer has no template the text stands as it is (a function
    to complete, a row of prompt and completion), behind the token that opens every text.
    """
    from plumbing.chat import render, template_arguments, template_source
    first = [{"role": "system", "content": system}] if system else []

    def wrap(question):
        messages, kwargs = [{"role": "user", "content": question}], {}
        if not isinstance(question, str):
            kwargs = question[0].get("chat_template_kwargs", {})
            messages = [{k: v for k, v in m.items() if k != "chat_template_kwargs"}
                        for m in question]
        if messages[0]["role"] != "system":
            messages = [*first, *messages]
        bare = raw or len(messages) == 1 and messages[0].get("bare")
        template = "none" if bare and not enc.chat_template else "auto"
        kwargs = template_arguments(kwargs, template_source(template, enc))
        return render(messages, enc, template, add_generation_prompt=True, kwargs=kwargs)
    return wrap


def load_model(path, device="cpu"):
    """(model, tokenizer, task) of a checkpoint or a Hugging Face folder.

    task: what it was trained on, a built-in one or text. The tokenizer stops where the turns of its
    chat template end, as after training.
    """
    from model import load_checkpoint, read_config
    from plumbing.chat import with_template
    from plumbing.tasks import task_of, tokenizer_of
    from plumbing.tokenizer import fingerprint
    meta = read_config(path)[1]
    try:
        enc = with_template(tokenizer_of(meta))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    model, meta = load_checkpoint(path, device, fingerprint(enc))
    return model.eval(), enc, task_of(meta)


def read_by(problems, wrap):
    """Digests of what is asked, what the model reads of it (template, date) and is tested by."""
    texts = [(wrap(asked(p)) if wrap else p.prompt, p.test) for p in problems]
    read = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return dict(data=digest(problems), read=read)


def official_grader():
    """The paper's scorer as verdict(text, gold) -> bool: math-verify, and letters by pattern."""
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError:
        raise ValueError("--grader official needs math-verify: "
                         "pip install math-verify[antlr4_13_2], or leave it out") from None
    anchored = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
    letter = re.compile(r"\\boxed\{\s*([A-E])\s*\}|answer\s*(?:is|:)?\s*\(?([A-E])\b", re.I)

    def verdict(text, gold):
        letters = letter.findall(text)
        if letters and gold in tuple("ABCDE"):
            return "".join(letters[-1]).upper() == gold
        return bool(verify(parse(f"${gold.strip('$')}$"), parse(text, extraction_config=anchored)))
    return verdict


def digest(items):
    """SHA-256 of what was asked and of its gold answers, so that a record names its data."""
    lines = [json.dumps([item.id, item.prompt, item.answer]) for item in items]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sampling_flags(cli, task):
    """Add the flags that eval_math and eval_code share to an argparse parser."""
    add = cli.add_argument
    add("--split", choices=("test", "val"), default="test", help=f"of {task}")
    add("--any-count", action="store_true",
        help="accept a benchmark of another size than published")
    add("--limit", type=int, help="only the first problems of each set")
    add("--n", type=int, default=1, help="samples per problem")
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--k", type=int, nargs="+", default=[], help="report pass@k, k <= samples per problem")
    add("--max-new-tokens", type=int, help=f"default 64 for {task}, else 512, or the protocol's")
    add("--batch", type=int, help=f"prompts decoded together, default 700 for {task}, else 32")
    add("--seed", type=int, default=0, help="of the samples")
    add("--device", default="auto", help="cuda, mps or cpu; auto: the first that is there")
    add("--out", help="folder for NAME.jsonl (rows) and NAME.json (settings, scores); default: "
        "beside a .pt file, without .pt; out/NAME for a folder")


def wrong_flags(a):
    """Sentences on the values of sampling_flags that cannot be used, all at once."""
    wrong = []
    counts = [x for x in (a.n, a.limit, a.batch, a.max_new_tokens) if x is not None]
    if min(counts) < 1:
        wrong.append("--n, --limit, --batch and --max-new-tokens: expected 1 or more")
    try:
        from plumbing.devices import pick  # imports torch, which --compare does not need

        a.device = str(pick(a.device))
    except ValueError as e:
        wrong.append(str(e))
    if any(not 1 <= k <= a.n for k in a.k):
        wrong.append(f"--k: expected 1 <= k <= n, found k {a.k} with n {a.n}; raise --n")
    if (a.n > 1 and a.temperature == 0) or not 0 <= a.temperature < math.inf:
        wrong.append(f"--temperature {a.temperature}: greedy samples are equal; "
                     "--n 1, or --temperature 0.5")
    return wrong


def math_flags(description, argv=None):
    """The command line of eval_math, checked; ValueError names all that is wrong at once."""
    cli = parser_of(description)
    add = cli.add_argument
    add("checkpoint", nargs="?", help=".pt file of train_wmss.py, Hugging Face folder or hub name")
    add("--compare", nargs=2, metavar=("A", "B"),
        help="two row files (.jsonl) of earlier runs; nothing is generated")
    add("--data", nargs="+", default=["toy-math"],
        help=f"toy-math, {', '.join(SOURCES)}: from the hub, or NAME=PATH; a file of your own: "
        f"NAME=PATH or NAME:GRADER=PATH, GRADER one of {', '.join(GRADERS)}")
    add("--prompt-column", default="", help="of a file of your own: the question's column")
    add("--completion-column", default="", help="the gold answer's column")
    add("--protocol", choices=("plain", "paper"), default="plain",
        help="paper: greedy, its system prompt, thinking on, 4,096 new tokens, 8,192 for aime25 "
        "and amc23")
    add("--grader", choices=("ours", "official"), default="ours",
        help="official: math-verify's verdict beside ours")
    sampling_flags(cli, "toy-math")
    a = cli.parse_args(argv)
    if a.compare:
        return a
    wrong = [] if a.checkpoint else ["checkpoint: expected a path, found none"]
    wrong += wrong_flags(a)
    if a.protocol == "paper" and (a.temperature or a.max_new_tokens):
        wrong.append("--protocol paper is greedy with its own lengths; leave those flags out")
    if (a.prompt_column == "") != (a.completion_column == ""):
        wrong.append("--prompt-column and --completion-column: expected both or neither")
    names = [parse_spec(spec)[0] for spec in a.data]
    if len(set(names)) < len(names):
        wrong.append(f"--data: expected each set once, found {', '.join(names)}")
    if wrong:
        raise ValueError("\n  ".join(["these flags cannot be used:", *wrong]))
    return a


def code_flags(description, argv=None):
    """The command line of eval_code, checked; ValueError names all that is wrong at once."""
    parser = parser_of(description)
    parser.add_argument("checkpoint", metavar="source", help="checkpoint (.pt file, Hugging Face "
                        "folder or hub name), or samples: .jsonl(.gz) of {task_id, completion}")
    parser.add_argument("--data", default="toy-code", help="toy-code (default); "
                        f"{', '.join(EXPECTED)}, with or without =FILE")
    parser.add_argument("--allow-code-execution", action="store_true",
                        help="run the code; nothing happens without it")
    parser.add_argument("--workers", type=int, help="programs at a time, default: cores / 2")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds of work and sleep a "
                        "program (3), or twice what the problem's own solution takes if more")
    sampling_flags(parser, "toy-code")
    args = parser.parse_args(argv)
    if not args.allow_code_execution:
        raise ValueError(CONSENT)                      # before any costly work
    is_model = not args.checkpoint.endswith(SAMPLES)
    wrong = wrong_flags(args) if is_model else []
    if not is_model and args.limit is not None and args.limit < 1:
        wrong.append("--limit: expected 1 or more")
    if not 0 < args.timeout <= 86_400 or args.workers is not None and args.workers < 1:
        wrong.append("--timeout and --workers: expected more than 0, and a day of time at most")
    if wrong:
        raise ValueError("\n  ".join(wrong))
    return args


def sha_of(*files):
    """{file: SHA-256} of those that are files here: no folder of a model, no name on the hub."""
    return {file: sha256_of(file) for file in files if os.path.isfile(file)}


def check_task(a, task):
    """A model that learned another task than toy-math knows nothing of its problems."""
    if task == "toy-math" or "toy-math" not in a.data:
        return
    was, instead = f"was trained on {task}", f"--data {', '.join(SOURCES)}"
    if task not in ("text", "toy-code"):
        instead = f"--data {task}"
    elif task == "toy-code":
        instead = f"python eval_code.py {a.checkpoint} --allow-code-execution"
    elif not a.checkpoint.endswith(".pt"):
        was = "does not say on what it was trained, so on text"
    raise ValueError(f"{a.checkpoint} {was}; score it with {instead}")


def verdicts_of(path):
    """A file of judged rows -> {(id, gold): {sample: correct}}."""
    verdicts = {}
    for where, row in read_rows(path):
        if not {"id", "gold", "sample", "correct"} <= set(row) or row["correct"] is None:
            raise ValueError(f"{where}: expected a judged row (id, gold, sample, correct), found "
                             f"{str(row)[:80]}")
        samples = verdicts.setdefault((row["id"], row["gold"]), {})
        samples[row["sample"]] = bool(row["correct"])
    return verdicts


def stem_of(a, name, record):
    """Where the rows and the record of a set go, without .jsonl or .json.

    That is NAME, beside a .pt file without .pt, else in out/; or NAME-SETTINGS where NAME has
    scores of other settings, data or models: scores are overwritten by their like only.
    """
    if name.startswith("toy-") and a.split == "val":
        name += "-val"
    folder = os.path.join("out", os.path.basename(os.path.normpath(a.checkpoint)))
    if a.checkpoint.endswith(".pt"):
        folder = a.checkpoint.removesuffix(".pt")
    stem = os.path.join(a.out or folder, name)
    keys = ["n", "temperature", "seed", "limit", "max_new_tokens", "protocol", "data",
            "data_sha256", "graded_as"]
    if a.out or not a.checkpoint.endswith(".pt"):
        keys.append("checkpoint")
    ours = {key: record.get(key) for key in keys}
    tags = [(a.temperature > 0, f"n{a.n}-t{a.temperature:g}-seed{a.seed}"),
            (a.limit, f"first{a.limit}"), (a.max_new_tokens, f"{a.max_new_tokens}tokens"),
            (record.get("protocol") == "paper", "paper")]
    tagged = "-".join([stem, *([tag for is_set, tag in tags if is_set] or ["greedy"])])
    for free in (stem, tagged):
        there = read_json(free + ".json", ours)
        if ours.items() <= {**dict.fromkeys(keys), **there}.items():
            return free
    return f"{tagged}-{hashlib.sha256(json.dumps(ours).encode()).hexdigest()[:6]}"
