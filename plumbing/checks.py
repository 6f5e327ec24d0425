"""What can be refused is refused here, before the run's folder is touched and any costly work."""

import dataclasses
import math
import os
import re

import torch

from model import GPTConfig, read_config
from plumbing.benchmarks import CODE_SETS, parse_spec
from plumbing.checkpoints import check_archive, is_finite
from plumbing.cli import flag_of, parser_of
from plumbing.confine import UNABLE
from plumbing.controls import ARMS, ROWS
from plumbing.files import read_json
from plumbing.log_to import missing
from plumbing.report import CODES
from plumbing.scoring import asked
from plumbing.tasks import task_of, tokenizer_of

STAGES = ("base", "sft", "entropy", "wmss", "score")


def check_flags(cfg, given):
    """Sentences on flags that do not fit each other; `given` are the fields that a user has set."""
    problems = []

    def check(ok, sentence):
        if not ok:
            problems.append(sentence)

    text, stages = cfg.task == "text" or bool(cfg.data), cfg.stages.split(",")
    if text and "task" not in given:
        cfg.task = "text"
    if cfg.task == "text":
        fit_to_text(cfg, given)
    check(stages == [s for s in STAGES if s in stages],
          f"--stages: expected some of {','.join(STAGES)}, in this order, found {cfg.stages!r}")
    check(re.fullmatch(r"[\w.-]*\w[\w.-]*", cfg.name),
          f"--name: expected letters, digits, '.', '_' and '-', found {cfg.name!r}")
    check(not (cfg.resume and cfg.overwrite),
          "--overwrite deletes what --resume would go on with; pass one of the two, not both")
    check(cfg.threads <= 16 * os.cpu_count(),
          f"--threads: expected at most {16 * os.cpu_count()}, 16 for each core of this machine, "
          f"found {cfg.threads}")
    check(cfg.dim % (2 * cfg.n_heads) == 0,
          f"--dim: expected an even multiple of --n-heads {cfg.n_heads}, found {cfg.dim}")
    check(cfg.alpha + cfg.beta + cfg.gamma > 0,
          "--alpha, --beta and --gamma are all 0, so no sample would be drawn; give one a share")
    mixing = [name for name in cfg.arm if name != "wmss" and ARMS[name].weak != ""]
    check(cfg.rounds == 1 or "wmss" in cfg.arm, "--rounds: only the arm wmss has rounds; add it")
    check(cfg.rounds == 1 or not mixing,
          "--rounds: of the arms with a weak model only wmss has rounds; pass --arm wmss without "
          f"{', '.join(mixing)} (--arm wmss --gap none iterates mixing alone)")
    check(cfg.task == "text" or not cfg.data,
          f"--task {cfg.task} makes its own data; leave --task away to train on --data")
    check(cfg.task != "text" or cfg.data,
          "--task text needs --data: the files, folders or hub names to train on")
    check(cfg.base or cfg.task != "text",
          "--data needs --base: the model that it is to train, a Hugging Face folder, a name on "
          "the hub, or a checkpoint")
    check(cfg.score_data or cfg.val_data or cfg.val_share or cfg.task != "text"
          or "score" not in stages,
          "--score-data: say what to score on (gsm8k, mine=FILE, mbpp, ...), or leave the stage "
          "score out with --stages base,sft,entropy,wmss; with --val-share 0.02 it is a table "
          "of losses")
    check(not cfg.val_data or cfg.task == "text" and not cfg.val_share,
          "--val-data is text that is held out, in place of --val-share; a built-in task has "
          "--val-share alone")
    check(not missing(cfg.log_to), missing(cfg.log_to))
    sets = [parse_spec(spec)[0].replace("mbpp-test", "mbpp") for spec in cfg.score_data]
    check(len(sets) == len(set(sets)),
          "--score-data: expected each set once (mbpp-test is a part of mbpp), found "
          f"{' '.join(cfg.score_data)}")
    runs_code = cfg.task == "toy-code" or set(sets) & set(CODE_SETS)
    check(not runs_code or "score" not in stages or cfg.allow_code_execution,
          "scoring runs programs that a model wrote (confined, see eval_code.py); pass "
          "--allow-code-execution if that is what you want, or leave the stage score out")
    check(not runs_code or "score" not in stages or not UNABLE, UNABLE)
    for name in ("base", "sft", "weak_snapshot"):
        path = getattr(cfg, name)
        on_the_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not path.endswith(".pt")
        check(not path or os.path.exists(path) or on_the_hub,
              f"{flag_of(name)}: there is no checkpoint or folder at {path}")
    return problems


def fit_to_text(cfg, given):
    """Give fields that no flag sets the defaults for text in place of the toy's: arg(..., text=).

    A run that is resumed keeps the values that it was started with.
    """
    path = os.path.join("out", cfg.name, "config.json")     # if it is broken, Folder.open says so
    saved = read_json(path, {}) if cfg.resume else {}
    for field in dataclasses.fields(cfg):
        default = field.metadata.get("text")
        if default is not None and field.name not in given:
            setattr(cfg, field.name, saved.get(field.name, default))


def check_inputs(run, needs_gaps, sets_to_score):
    """Read the data and look at every file that a flag names; ValueError on what cannot work."""
    cfg, folder, stages = run.cfg, run.folder, run.cfg.stages.split(",")
    paths = {name: getattr(cfg, name) for name in ("base", "sft", "weak_snapshot")}
    paths = {name: path for name, path in paths.items() if path}
    for path in paths.values():             # first: what it was trained on decides what else means
        task = task_of(read_config(path)[1])
        if task != cfg.task:
            flag = "--data" if task == "text" else f"--task {task}, without --data"
            raise ValueError(f"{path} was trained on {task}, this run is on {cfg.task}; "
                             f"pass {flag}")
    run.read_data()
    vocabulary, model_cfg = None, GPTConfig()
    for name, path in paths.items():
        model_cfg = _check_checkpoint(run, name, path)
        vocabulary = vocabulary or (path, model_cfg.vocab_size)
        if model_cfg.vocab_size != vocabulary[1]:
            raise ValueError(f"{vocabulary[0]} and {path} have vocabularies of {vocabulary[1]:,} "
                             f"and {model_cfg.vocab_size:,} logits; mixing needs one and the same")
    if cfg.resume and cfg.resume != "auto" and not os.path.isdir(folder.out):
        raise ValueError(f"nothing to resume in {folder.out}; leave --resume away, or pass "
                         "--resume auto")

    def kept(path):
        return not cfg.overwrite and os.path.exists(path)

    for t, name in ((0, "base"), (1, "sft")):
        there = getattr(cfg, name) or kept(folder.checkpoint(t)) or cfg.sft and cfg.weak_snapshot
        needed = any(s in stages for s in STAGES[t + 1:4])
        if not there and name not in stages and needed:
            raise ValueError(f"the stages {cfg.stages} need {folder.checkpoint(t)}, which is not "
                             f"there; add the stage {name} or pass --{name} CHECKPOINT")
    if cfg.sft and not cfg.base and not cfg.weak_snapshot and not kept(folder.path("base.pt")):
        raise ValueError(f"--sft {cfg.sft} without --base: which base was it fine-tuned from? "
                         "Pass it too")
    if "wmss" in stages and "entropy" not in stages and needs_gaps:
        if not kept(folder.gaps(cfg.rounds)):
            raise ValueError(f"the stage wmss needs {folder.gaps(cfg.rounds)}, which is not there; "
                             "add the stage entropy, or leave the gaps away (--gap none)")
    for t in range(2, cfg.rounds + 1):
        made = "wmss" in stages or kept(folder.checkpoint(t)) or kept(folder.gaps(t))
        if "entropy" in stages and needs_gaps and not made:
            raise ValueError(f"the stage entropy of round {t} needs {folder.checkpoint(t)}; add "
                             "the stage wmss, which makes it, or pass --rounds 1")
    if stages == ["score"] and not paths and (cfg.overwrite or not folder.models(ROWS)):
        raise ValueError(f"no checkpoint in {folder.out} to score; run the stages before it")
    if cfg.overwrite:
        named = [*paths.values(), *cfg.data, *cfg.val_data, cfg.preset, cfg.template,
                 *(spec.partition("=")[2] for spec in cfg.score_data)]
        own, *places = ({see(path) + os.sep for see in (os.path.abspath, os.path.realpath)}
                        for path in (folder.out, *(re.sub("@[^@/]+$", "", p) for p in named if p)))
        for path, place in zip(filter(None, named), places, strict=True):
            if any(a.startswith(b) or b.startswith(a) for a in place for b in own):
                raise ValueError(f"--overwrite would delete {path}, which this run is to read; "
                                 "choose another --name, or move it")
    if "score" in stages and (cfg.task != "text" or cfg.score_data):
        room = model_cfg.max_seq_len if cfg.task == "text" else GPTConfig.max_seq_len
        _check_room(run, sets_to_score(run), room)


def _check_checkpoint(run, name, path):
    """One checkpoint that a flag names -> its GPTConfig."""
    cfg = run.cfg
    model_cfg, meta = read_config(path, run.tokenizer)
    shape = [f"{flag_of(k)} {getattr(model_cfg, k)}" for k in ("dim", "n_layers", "n_heads")
             if getattr(model_cfg, k) != getattr(cfg, k)]
    if shape and cfg.task != "text" and name != "weak_snapshot":
        raise ValueError(f"{path} is a model of another shape than this run's; "
                         f"pass {' '.join(shape)}")
    if cfg.task == "text" and cfg.max_len > model_cfg.max_seq_len:
        raise ValueError(f"--max-len: expected at most {model_cfg.max_seq_len}, the positions of "
                         f"{path}, found {cfg.max_len}")
    if cfg.task == "text" and path != cfg.base and meta["config"]:
        enc, was = tokenizer_of(meta), meta["config"]
        if (enc.chat_template != run.enc.chat_template
                or enc.settings.get("kwargs") != run.enc.settings.get("kwargs")):
            theirs, ours = [" ".join(["--template", flags["template"],
                                      flags.get("template_kwargs", "")]).strip()
                            for flags in (was, vars(cfg))]
            raise ValueError(f"{path} was trained in another chat format ({theirs}) than this "
                             f"run's ({ours}); pass the one that it was trained in")
    return model_cfg


def _check_room(run, sets, room):
    """Do the longest prompt and the answer fit into the model's positions?"""
    texts = []
    for questions in sets:
        wrap = questions.wrap
        for p in questions.problems:
            texts.append(wrap(asked(p)) if wrap else p.prompt)
            run.enc.check(texts[-1], of=f" of problem {p.id}")
    encoded = run.enc.encode_batch(texts, allowed_special="all", num_threads=1)
    longest = max(map(len, encoded))
    if longest + run.cfg.max_new_tokens > room:
        raise ValueError(f"--max-new-tokens: expected at most {room - longest}, found "
                         f"{run.cfg.max_new_tokens}; prompts have up to {longest} tokens, the "
                         f"models {room}")


def check_interim(path, meta, params, weak, steps):
    """ValueError unless this metadata of a resume-ARM.pt is what Progress.end() writes.

    params: what the optimizer trains; weak: the weak model, or None; steps: of the whole stage.
    """
    pairs = []                                  # (a tensor of the file, what it is for)
    try:
        fine = type(meta["step"]) is int and 0 < meta["step"] < steps
        fine = fine and math.isfinite(meta["seconds"]) and math.isfinite(meta["flops"])
        fine = fine and meta["rng"].shape == torch.get_rng_state().shape
        for p, state in zip(params, meta["optimizer"], strict=True):
            if state is not None:
                own = state.keys() - {"average"}            # of the arm `averaged`
                fine = fine and own == {"step", "exp_avg", "exp_avg_sq"}
                fine = fine and state["step"].dim() == 0
                pairs += [(tensor, p) for key, tensor in state.items() if key != "step"]
        if weak is not None:
            pairs += [(meta["weak"][name], p) for name, p in weak.named_parameters()]
        fine = fine and all(tensor.shape == p.shape for tensor, p in pairs)
    except (TypeError, AttributeError, KeyError, ValueError):
        fine = False
    if not fine:
        raise ValueError(f"{path} is no interim state of a run of this version; delete it, and its "
                         "stage starts again")
    if not all(is_finite(tensor) for tensor, _ in pairs):
        raise ValueError(f"{path}: the optimizer's state or the weak model holds NaN or infinity; "
                         "delete it, and its stage starts again")


# values of tokens (M) and of samples (N) in a gaps file
OF_GAPS = dict(ent_weak="M", ent_live="M", codes="M", mean_weak="N", mean_live="N", weights="N")
AGAIN = "delete it and rerun the stage `entropy`"


def read_gaps(path, cls):
    """The object of class entropy.Gaps in a file; ValueError if there is none in it."""
    try:
        check_archive(path)
        gaps = cls(**torch.load(path, weights_only=True))
        flat = all(getattr(gaps, name).dim() == 1 for name in ("ids", "offsets", *OF_GAPS))
        words = all(isinstance(word, str) for word in (gaps.weak, gaps.live, gaps.tokenizer))
        numbers = [gaps.flops, gaps.seconds, *map(gaps.settings.get, ("tau", "h"), (0, 0))]
        if not (flat and words and all(map(math.isfinite, numbers))):
            raise TypeError
        return gaps
    except FileNotFoundError:
        raise ValueError(f"expected {path}, found none; run the stage `entropy`") from None
    except Exception as e:
        raise ValueError(f"{path} is not a gaps file ({type(e).__name__}); {AGAIN}") from None


def check_gaps(path, gaps, samples, expected):
    """ValueError unless gaps belong to these samples and to (weak, live, tokenizer)."""
    want = {s.id: int(s.loss[1:].sum()) for s in samples}
    if gaps.ids.tolist() != list(want):
        missing = next(iter(set(want) - set(gaps.ids.tolist())), "none, but others are there")
        raise ValueError(f"{len(samples):,} samples in the data but {len(gaps.ids):,} in {path} "
                         f"(first missing id {missing}); {AGAIN}")
    made_for = (gaps.weak, gaps.live, gaps.tokenizer)
    counts, sizes = gaps.offsets.diff().tolist(), dict(N=len(want), M=sum(want.values()))
    whole = all(len(getattr(gaps, name)) == sizes[of] for name, of in OF_GAPS.items())
    if not whole or counts != list(want.values()) or made_for != expected:
        raise ValueError(f"{path} was made for other samples or models (weak, live, tokenizer: "
                         f"{', '.join(made_for)}; expected {', '.join(expected)}); {AGAIN}")
    wrong = []
    for name in OF_GAPS.keys() - {"codes"}:
        values = getattr(gaps, name)
        if not (values.isfinite() & (values > -1e-3)).all():       # entropies are rounded
            wrong.append(f"{name} has NaN, infinity or values below 0")
    if gaps.codes.dtype != torch.uint8 or (gaps.codes >= len(CODES)).any():
        wrong.append(f"codes are not uint8 below {len(CODES)}")
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)}; {AGAIN}")


# of a live model that train_wmss.py did not write
OTHER_DATA = dict(tau=0.01, h=0.05, alpha=0.1, beta=0.8, gamma=0.1, weights="code", lam=0.5,
                  prompt_column="", completion_column="", max_len=1024, long="truncate")


def entropy_flags(description, weights, argv=None):
    """The command line of entropy.py, checked; weights: the formulas that there are."""
    parser = parser_of(description)
    add = parser.add_argument
    add("--weak", required=True, help="checkpoint of the weak snapshot")
    add("--live", required=True, help="checkpoint of the live model; its settings name the data")
    add("--data", nargs="+", metavar="SPEC",
        help="text to read instead: files, folders, names on the hub")
    add("--prompt-column", help="of --data: name of the column of prompts, if it is another")
    add("--completion-column", help="of --data: name of the column of completions")
    add("--tau", type=float, help="gap threshold, nats (default: the live run's)")
    add("--h", type=float, help="weak entropy above which an unchanged token is hard, nats "
        "(default: the live run's)")
    add("--weights", choices=weights, help="formula of the weights (default: the live run's)")
    add("--device", default="auto", help="cuda, mps, cpu; auto: the first that is there")
    add("--show", type=int, default=0, metavar="N",
        help="print the N heaviest samples, coloured by gap code")
    add("--report", default="", metavar="PAGE",
        help="write them as a page of HTML, with what both models expected")
    args = parser.parse_args(argv)
    if args.show < 0:
        parser.error(f"--show: expected a number of samples, found {args.show}")
    if not all(0 <= (x or 0) < math.inf for x in (args.tau, args.h)):
        raise ValueError("tau and h must be >= 0 nats and finite, found "
                         f"--tau {args.tau} --h {args.h}")
    if os.path.isdir(args.report):
        parser.error(f"--report: expected the name of a page, found the folder {args.report}")
    return args


def settings_of(args, meta):
    """What entropy.py measures: the settings of the live model's run, or those of the flags."""
    cfg = meta.get("config", {})
    if args.data:
        cfg = {**OTHER_DATA, **cfg, "task": "text", "data": args.data, "val_share": 0,
               "val_data": []}
    if "tau" not in cfg:
        raise ValueError(f"{args.live} says nothing of its training data; expected a checkpoint "
                         "that train_wmss.py wrote, or --data")
    names = ("tau", "h", "weights", "prompt_column", "completion_column")
    flags = {name: getattr(args, name) for name in names}
    return {**cfg, **{name: value for name, value in flags.items() if value is not None}}
