"""WMSS, all three stages: train a base, fine-tune it (SFT), find the gaps between a weak snapshot and the live model,
go on training on mixed logits of both; beside it the SFT model trained on for equal steps and for equal FLOPs, or any of
the controls in ARMS.

Paper: Weak-Driven Learning, arXiv 2602.08222 (v2, sections 3.1-3.3, Algorithm 1). Only the strong model is kept.

    torchrun train_wmss.py                                   # CPU, a few minutes, no download: a table at the end
    torchrun --nproc_per_node 8 train_wmss.py                # eight GPUs (or processes); plain `python` works as well
    torchrun train_wmss.py --preset smollm2-gsm8k            # real weights, real text; --base and --data take local paths too
    python train_wmss.py --name arms --arm d0 frozen permuted --base out/toy/base.pt --sft out/toy/sft.pt    # controls, same M1
    python train_wmss.py --name toy --resume                 # go on where a run was interrupted

Shapes: B batch, T time, C width, V vocabulary, N loss tokens of a micro-batch.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:      # threads that spin at barriers make a busy machine 10x slower, threads that sleep
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")      # at once make two of them slower than one: spin for 10 us, then sleep
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")       # tensors in pages of 2 MB: the kernel hands out a GB in 0.06 s, not 0.4

import argparse
import difflib
import json
import math
import platform
import re
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from typing import Literal, NamedTuple, get_args, get_origin

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.adamw import adamw

import eval_code
import eval_math
from data import (TASKS, corpus_set, digest, fingerprint, micro_batches, schedule, send, task_of, tokenizer_of, training_set,
                  with_template)
from entropy import check_pair, codes_of, find_gaps, html_report, load_pair, report, token_statistics
from model import GPT, GPTConfig, chunk_of, load_checkpoint, read_config, save_checkpoint, tiles, write_atomically

STAGES = ("base", "sft", "entropy", "wmss", "score")


class Arm(NamedTuple):
    """What stage 3 may do with M1; None: what the flag of that name says. Steps are those of wmss for all but sft-flops."""
    weak: str | None = ""           # joint, frozen; "": no weak model, plain cross-entropy
    gap: str | None = "none"
    d0: bool = False                # CE(softmax(lam z_strong)): the temperature that mixing amounts to, without a weak model
    smoothing: float = 0.0          # share of the target that goes to all tokens alike
    permuted: float = 0.0           # share of the weak model's other logits that are permuted among themselves


ARMS = {                            # section 4 of the method, and what each isolates
    "wmss": Arm(None, None),
    "sft": Arm(),                                   # the practical baseline
    "sft-flops": Arm(),                             # compute: as many steps as cost what wmss costs
    "d0": Arm(d0=True),                             # temperature
    "label-smoothing": Arm(smoothing=0.1),          # the cheapest way to keep gradients alive
    "weights-only": Arm(gap="sample"),              # the curriculum
    "joint": Arm("joint"),                          # mixing, with every sample once
    "frozen": Arm("frozen"),                        # a weak model that does not adapt
    "permuted": Arm(None, permuted=1.0)}            # which tokens the weak model errs on
FILES = {"sft": "sft-steps"}                        # where an arm's checkpoint, log and row have another name: sft.pt is M1
ROWS = ("base", "sft", "sft-steps", "sft-flops", *list(ARMS)[3:], "wmss", "weak", "fused")      # of the table

# ----------------------------------------------------------------------------------------------------------------------
# configuration: a field is a flag, its comment the help


@dataclass
class Config:
    # the run
    name: str = "toy"                 # everything the run makes lies in out/<name>/
    preset: Literal["toy", "smoke", "smollm2-gsm8k", "qwen3-0.6b-gsm8k", "qwen3-4b-am"] = "toy"  # values, printed at start; flags go first
    stages: str = ",".join(STAGES)    # stages to run, in this order
    resume: bool = False              # go on with an interrupted out/<name>, or add stages to it
    overwrite: bool = False           # delete an existing out/<name> first
    seed: int = 0                     # of initialisation, data and order
    threads: int = 0                  # CPU threads of each process; 0 = cores / processes on this machine
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # autocast; auto = bf16 on CUDA, fp32 on CPU
    compile: bool | None = None       # torch.compile the models in training; default: on CUDA from a width of 1,024 on, on CPU no
    # data: a built-in task, or text
    task: Literal["toy-math", "toy-code", "text"] = "toy-math"  # sums in columns; words -> one Python expression; what --data says
    data: list[str] = field(default_factory=list)  # text: hub names (NAME[:CONFIG][@SPLIT]), .jsonl or .parquet files, folders
    template: str = "auto"            # chat format: auto = the tokenizer's, else plain; plain, chatml, none, or a Jinja file
    prompt_column: str = ""           # text: column of the prompt (default: messages, prompt/completion, question/answer)
    completion_column: str = ""       # text: column of the completion
    max_len: int = 1024               # text: most tokens that the model reads of a sample
    long: Literal["drop", "truncate", "error"] = "error"  # text: what becomes of longer samples
    corpus: int = 12000               # samples of the noisy corpus that the base is trained on
    noise: float = 0.5                # share of the corpus whose solutions make the usual mistake
    clean: int = 1000                 # samples of the clean set D, for SFT and WMSS
    # model
    dim: int = 96                     # width
    n_layers: int = 2                 # layers
    n_heads: int = 4                  # attention heads
    base: str = ""                    # M0: this checkpoint, Hugging Face folder or hub name instead of training a base
    sft: str = ""                     # M1: use this checkpoint instead of fine-tuning
    # optimisation: AdamW, linear warm-up, linear decay to 0
    batch_size: int = 64              # samples per optimizer step, over all ranks and micro-batches
    micro_batch: int = 64             # most samples in one forward pass; a step accumulates the gradients of as many as it takes
    tokens_per_batch: int = 0         # most tokens in one forward pass, padding included; 0 = no limit but --micro-batch
    checkpointing: bool = False       # recompute activations in backward: less memory, a third more time
    base_steps: int = 1200            # optimizer steps of the base
    base_lr: float = 3e-3             # peak learning rate of the base
    sft_epochs: float = 1.0           # epochs of SFT over D
    sft_lr: float = 1e-4              # peak learning rate of SFT
    wmss_epochs: float = 1.0          # epochs of joint training; also sets the steps of the other arms
    wmss_lr: float = 1e-4             # peak learning rate of every arm but sft and sft-flops; this and the next two: chosen on val
    sft_steps_lr: float = 1.5e-4      # peak learning rate of the baseline sft (sft-steps)
    sft_flops_lr: float = 2e-4        # peak learning rate of the baseline sft-flops
    warmup: float = 0.1               # share of a stage's steps
    weight_decay: float = 0.0         # AdamW
    clip: float = 1.0                 # gradient norm, after the sync over ranks, both branches together
    chunk_rows: int = 0               # loss rows whose logits exist at a time; 0 = as many as fill 128 MB
    # WMSS
    arm: list[str] = field(default_factory=lambda: ["wmss", "sft", "sft-flops"])  # what stage 3 trains
    lam: float = 0.9                  # weight of the strong logits in the mix; chosen on val (paper: 0.5)
    weak: Literal["joint", "frozen"] = "joint"  # is the weak branch trained too? (released code: yes)
    weak_snapshot: str = ""           # weak model of round 1; default: M0, that is base.pt
    weights: Literal["code", "v1", "v2"] = "code"  # reading of the sampling weights
    alpha: float = 0.1                # weight term: base difficulty
    beta: float = 0.8                 # weight term: consolidation (v2: current difficulty)
    gamma: float = 0.1                # weight term: regression repair
    dedup: bool = False               # keep the first of equal draws only (v2); what the last step lacks comes from another draw
    gap: Literal["none", "sample", "token", "both"] = "token"  # use gaps as sampling weights (paper), token masks (chosen on val), both, not at all
    tau: float = 0.01                 # gap mask: nats of entropy change; tau = h = 0 masks every token in, as in the paper
    h: float = 0.05                   # gap mask: nats of weak entropy that make an unchanged token hard
    rounds: int = 1                   # K; round t mixes M_{t-1} into M_t
    # output
    snapshots: int = 2                # SFT snapshots saved on the way, as candidates for --weak-snapshot
    save_every: int = 200             # steps between saves of the state that --resume continues from
    log_every: int = 50               # most steps between log lines
    score_n: int = 2100               # problems to score
    score_split: Literal["test", "val"] = "test"  # built-in tasks: choose settings on val, read test once
    score_data: list[str] = field(default_factory=list)  # text: what to score on: gsm8k, mbpp=FILE, ... (see --data of eval_*.py)
    system: str = ""                  # text: system prompt of the questions that are scored; paper = the paper's (--data brings its own)
    eval_batch: int = 700             # prompts decoded together
    allow_code_execution: bool = False  # code: run the programs that the models write, confined, to score them
    max_new_tokens: int = 64          # per answer; the longest solution has 61 tokens


# On GSM8K the paper's settings but for what a smaller model and one GPU ask for; none of them is tuned (README, "Real models").
_GSM8K = dict(data=["openai/gsm8k:main"], score_data=["gsm8k", "svamp"], max_len=768, long="drop", batch_size=64, micro_batch=64,
              tokens_per_batch=16384, sft_epochs=2.0, wmss_epochs=1.0, lam=0.5, gap="sample", wmss_lr=1e-5,
              sft_steps_lr=1e-5, sft_flops_lr=1e-5, max_new_tokens=400, eval_batch=256)
PRESETS = {
    "toy": {}, "smoke": dict(corpus=600, clean=128, base_steps=60, dim=48, batch_size=32, score_n=140, log_every=10),
    "smollm2-gsm8k": dict(_GSM8K, base="HuggingFaceTB/SmolLM2-135M", sft_lr=1e-4),
    "qwen3-0.6b-gsm8k": dict(_GSM8K, base="Qwen/Qwen3-0.6B-Base", sft_lr=2e-5, checkpointing=True),
    "qwen3-4b-am": dict(base="Qwen/Qwen3-4B-Base", data=["train.jsonl"],            # written by: python data.py am --system
                        score_data=["aime25", "math500", "amc23", "aqua", "gsm8k", "mawps", "svamp"], max_len=4096,
                        long="truncate", batch_size=512, micro_batch=64, tokens_per_batch=16384, checkpointing=True,
                        sft_epochs=1.0, wmss_epochs=1.0, sft_lr=1e-5, wmss_lr=1e-5, sft_steps_lr=1e-5, sft_flops_lr=1e-5,
                        warmup=0.0, lam=0.5, gap="sample", system="paper", max_new_tokens=4096, eval_batch=64)}
DEVIATIONS = {      # of the preset from the paper's section 4.1 and released scripts; printed with it
    "qwen3-4b-am":
        "bf16 is autocast, weights and optimizer state are fp32, all on every GPU (paper: bf16 on 8 x H800): SFT needs 64 GB, "
        "joint training 128 GB (--weak frozen: 80), activations not counted; nothing is sharded; warm-up 0 as in the released scripts (text: 10 %); AdamW betas 0.9, 0.95; the loss is summed "
        "over the tokens of a step; AIME25 and AMC23 get 4,096 new tokens (paper: 8,192); data: your own run of "
        "`python data.py am --system`, math only (paper: 19,457 code and 14,882 logic samples too); Qwen3's chat template sets the "
        "line breaks around </think> (authors: the response as it stands)"}
FREE_ON_RESUME = {"stages", "arm", "resume", "overwrite", "threads", "save_every", "log_every", "preset", "score_n", "score_split",
                  "system", "eval_batch", "max_new_tokens", "allow_code_execution"}


def parse(argv=None):
    """argv -> Config; every bad flag is reported, all in one SystemExit."""
    with open(__file__, encoding="utf-8") as f:                                 # inspect.getsource() would parse the file: 0.1 s
        config = f.read().partition("\nclass Config:")[2].partition("\n\n\n")[0]
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", config, re.M))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    known = {f.name: f for f in fields(Config)}
    for f in known.values():
        flag, text = "--" + f.name.replace("_", "-"), comments[f.name].strip() + f" [{getattr(Config(), f.name)}]"
        if get_origin(f.type) is list:
            names = "{" + ",".join(ARMS) + "}" if f.name == "arm" else "NAME"
            parser.add_argument(flag, nargs="+", default=argparse.SUPPRESS, metavar=names, help=text)
        elif f.type in (bool, bool | None):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            choices = "{" + ",".join(get_args(f.type)) + "}" if get_args(f.type) else f.type.__name__.upper()
            parser.add_argument(flag, default=argparse.SUPPRESS, metavar=choices, help=text.replace("%", "%%"))
    given, unknown = parser.parse_known_args(argv)
    given, problems = vars(given), []
    for word in unknown:
        close = difflib.get_close_matches(word.split("=")[0], ["--" + n.replace("_", "-") for n in known], 1)
        problems.append(f"unknown argument {word}" + (f"; did you mean {close[0]}?" if close else ""))
    for name, value in list(given.items()):
        kind, options = known[name].type, get_args(known[name].type)
        try:
            if isinstance(value, str) and kind in (int, float):
                given[name] = kind(value)
            elif isinstance(value, str) and options and value not in options:
                problems.append(f"--{name.replace('_', '-')}: expected one of {', '.join(options)}, found {value!r}")
                del given[name]
        except ValueError:
            problems.append(f"--{name.replace('_', '-')}: expected {kind.__name__}, found {value!r}")
            del given[name]
    cfg = Config(**{**PRESETS[given.get("preset", "toy")], **given})
    if cfg.data and "task" not in given:
        cfg.task = "text"
    text, stages = cfg.task == "text", cfg.stages.split(",")

    def check(ok, flag, expected):
        if not ok:
            problems.append(f"--{flag}: expected {expected}, found {getattr(cfg, flag.replace('-', '_'))!r}")

    check(stages == [s for s in STAGES if s in stages], "stages", f"some of {','.join(STAGES)}, in this order")
    check(re.fullmatch(r"[\w.-]*\w[\w.-]*", cfg.name), "name", "letters, digits, '.', '_' and '-'")
    check(not (cfg.resume and cfg.overwrite), "overwrite", "not both --resume and --overwrite")
    for flag in "lam noise warmup".split():
        check(0 <= getattr(cfg, flag) <= 1, flag, "a share from 0 to 1")
    for flag in ("corpus clean dim n-layers n-heads batch-size micro-batch base-steps rounds save-every log-every "
                 "score-n eval-batch max-new-tokens max-len").split():
        check(getattr(cfg, flag.replace("-", "_")) >= 1, flag, "at least 1")
    for flag in "sft-epochs wmss-epochs base-lr sft-lr wmss-lr sft-steps-lr sft-flops-lr clip".split():
        check(0 < getattr(cfg, flag.replace("-", "_")) < float("inf"), flag, "a finite number above 0")
    check(0 <= cfg.seed < 2 ** 31, "seed", "a number from 0 to 2147483647")
    for flag in "alpha beta gamma tau h weight-decay snapshots threads tokens-per-batch chunk-rows".split():
        check(0 <= getattr(cfg, flag.replace("-", "_")) < float("inf"), flag, "a finite number, at least 0")
    check(cfg.dim % (2 * max(1, cfg.n_heads)) == 0, "dim", "an even multiple of --n-heads")
    check(cfg.alpha + cfg.beta + cfg.gamma > 0, "beta", "alpha, beta and gamma not all 0")
    check(set(cfg.arm) <= set(ARMS), "arm", f"some of {', '.join(ARMS)}")
    check(cfg.rounds == 1 or "wmss" in cfg.arm and not {"joint", "frozen", "permuted"} & set(cfg.arm), "rounds",
          "1 where --arm lacks wmss or has joint, frozen or permuted (--arm wmss --gap none --weak joint iterates)")
    check(text == bool(cfg.data), "data", "text for --task text, and for no other task")
    check(cfg.base or not text, "base", "the model that text is to train, a Hugging Face folder or a checkpoint")
    check(cfg.score_data or not text or "score" not in stages, "score-data", "gsm8k, svamp=FILE, mbpp, ... (or no stage score)")
    names = [spec.partition("=")[0].replace("mbpp-test", "mbpp") for spec in cfg.score_data]
    check(len(names) == len(set(names)), "score-data", "each set once (mbpp-test is a part of mbpp)")
    runs_code = cfg.task == "toy-code" or any(is_code(spec) for spec in cfg.score_data)
    check(not runs_code or "score" not in stages or cfg.allow_code_execution, "allow-code-execution",
          "consent: the stage score runs code that a model wrote (confined, see eval_code.py)")
    for flag in "base sft weak-snapshot".split():
        path = getattr(cfg, flag.replace("-", "_"))
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not path.endswith(".pt")              # is asked for when it is read
        check(not path or os.path.exists(path) or hub, flag, "an existing checkpoint")
    if problems:
        raise SystemExit("train_wmss: " + "\n            ".join(problems) + "\nsee python train_wmss.py -h; nothing was written")
    return cfg


# ----------------------------------------------------------------------------------------------------------------------
# losses: paper v2, eq. 5-6


def mix_logits(z_strong, z_weak, lam):
    """Eq. 5: z_mix = lam z_strong + (1 - lam) z_weak, any shape (..., V); lam a number or a tensor that broadcasts.

    >>> mix_logits(torch.tensor([2., 0.]), torch.tensor([0., 4.]), 0.5).tolist()
    [1.0, 2.0]
    """
    return lam * z_strong + (1 - lam) * z_weak


def hash_ids(*ids):
    """Whole numbers, or int64 tensors that broadcast -> int64, a pseudo-random function of all of them (splitmix64, Steele et
    al. 2014): the same on every device, whatever the order or the company that they are asked in.

    >>> hash_ids(0, torch.arange(2)).tolist()
    [-6411193824288604561, 627405149472732430]
    """
    x = torch.zeros((), dtype=torch.int64)
    for i in ids:                                       # int64 wraps around, as splitmix64 wants; >> would copy the sign
        x = x.to(i.device) if isinstance(i, torch.Tensor) else x
        x = (x ^ i) - 7046029254386353131
        x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
        x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
        x = x ^ (x >> 31 & 0x1FFFFFFFF)
    return x


def permute_logits(z, y, keys, share=1.0):
    """Permute each row's values at the places that are not the target's -> (permuted, source): permuted[n, k] = z[n, source[n, k]].

    z (N, V), targets y (N,) long, keys (N,) int64: the permutation of a row is a function of its key and nothing else. A share
    of the places, drawn place by place, takes part and forms one random cycle (Sattolo's): with share 1 every value but the target's
    moves, with 0 none does. The gradient with respect to z is that of `permuted`, scattered to source.

    >>> permute_logits(torch.tensor([[1., 2., 3., 4., 5.]]), torch.tensor([2]), torch.tensor([7]))[0].tolist()
    [[2.0, 4.0, 3.0, 5.0, 1.0]]
    """
    place, last = torch.arange(z.size(-1), device=z.device), (1 << 31) - 1
    u = (hash_ids(keys[:, None], place) >> 32).int().clamp(max=last - 1)                       # (N, V), 32 bits sort twice as fast
    u, order = u.scatter(-1, y[:, None], last).sort(stable=True)                               # as 64; the target comes last,
    n = (u < min(round(share * 2 ** 32) - 2 ** 31, last)).sum(-1, keepdim=True)                # who takes part first:
    after = torch.where(place + 1 < n, place + 1, torch.where(place < n, 0, place))            # 0 -> 1 -> ... -> n - 1 -> 0
    source = torch.empty_like(order).scatter_(-1, order, order.gather(-1, after))
    return z.gather(-1, source), source


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of mixed logits, chunk_rows rows at a time; the gradients come in the same pass.

    A chunk's logits give its loss and, overwritten in place, its gradient g = softmax(z) - onehot(y); so nothing of size
    V is kept for backward or computed twice: three matrix products per branch, as in the naive form, instead of the
    four that recomputing the chunks would cost. What stays is one gradient of the size of each input.
    """

    @staticmethod
    def forward(ctx, targets, chunk_rows, branches, smoothing, permute, *tensors):
        # branches: the coefficient of each branch, a float or (N, 1); tensors: hidden (N, C) and weight (V, C) of each;
        # permute: None, or (keys (N,), share) for permute_logits() of the last branch
        hidden, weight = tensors[::2], tensors[1::2]
        device = hidden[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden[0].dtype
        exact = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype     # softmax and sums: fp32 or better
        grads = [torch.zeros_like(t) if need else None for t, need in zip(tensors, ctx.needs_input_grad[5:])]
        loss = torch.zeros((), dtype=exact, device=targets.device)
        with torch.autocast(device, enabled=False):
            scaled = [(c * h).to(dtype) for c, h in zip(branches, hidden)]      # mixing costs N*C here, N*V after the head
            heads = [w.to(dtype) for w in weight]
            logits = torch.empty(min(chunk_rows, len(targets)), len(heads[0]), dtype=exact, device=targets.device)
            for i in range(0, len(targets), chunk_rows):
                rows = slice(i, i + chunk_rows)
                y = targets[rows, None]
                z = logits[:len(y)]                                             # (chunk, V), one buffer for all chunks
                for part, *ws in zip(tiles(z, 1), *map(tiles, heads[:-1] if permute else heads)):
                    (h, w), *others = [(h[rows], w.T) for h, w in zip(scaled, ws)]
                    tile = h @ w
                    if dtype == exact:                                          # the branches are summed in the cache, then stored
                        for h, w in others:
                            tile.addmm_(h, w)
                        part.copy_(tile)
                    else:                                                       # products in bf16, their sum in fp32
                        part.copy_(tile)
                        for h, w in others:
                            part.add_(h @ w)
                if permute:
                    moved, source = permute_logits(scaled[-1][rows] @ heads[-1].T, targets[rows], permute[0][rows], permute[1])
                    z.add_(moved)
                top, of_y = z.amax(-1, keepdim=True), z.gather(-1, y)
                if smoothing:                                                   # CE with (1 - eps) onehot(y) + eps / V
                    of_y = (1 - smoothing) * of_y + smoothing * z.mean(-1, keepdim=True)
                p = torch.softmax(z, -1, out=z)                                 # P_mix, in place: one pass over memory, not six
                loss += (top - p.amax(-1, keepdim=True).log() - of_y).sum()     # log sum e^z = max z - log max P
                if not any(g is not None for g in grads):
                    continue
                p = p.sub_(smoothing / p.size(-1)) if smoothing else p
                g = p.scatter_add_(-1, y, torch.full_like(y, smoothing - 1, dtype=exact)).to(dtype)      # g = P_mix - e_y
                for b, c in enumerate(branches):
                    if b and permute:
                        g = torch.empty_like(g).scatter_(-1, source, g)
                    if grads[2 * b] is not None:                                # dL/dh = c g W
                        c_rows = c[rows] if isinstance(c, torch.Tensor) else c
                        grads[2 * b][rows] = (c_rows * (g @ heads[b])).to(grads[2 * b].dtype)
                    if grads[2 * b + 1] is not None:                            # dL/dW = g^T (c h)
                        if grads[2 * b + 1].dtype == dtype:
                            grads[2 * b + 1].addmm_(g.T, scaled[b][rows])
                        else:
                            grads[2 * b + 1] += g.T @ scaled[b][rows]
        ctx.grads = grads
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable            # a second derivative is an error, not a silent 0
    def backward(ctx, grad_loss):
        grads, ctx.grads = ctx.grads, None          # handed on, not copied: they may be as large as the model
        if grads is None:
            raise RuntimeError("cross_entropy: second backward through one loss; its gradients were already handed on")
        return None, None, None, None, None, *(g if g is None else g.mul_(grad_loss) for g in grads)


def _flat(hidden, targets, chunk_rows, lam=1.0):
    """hidden (..., C) -> (N, C), after a look at what would otherwise broadcast or loop over nothing."""
    per_row = isinstance(lam, torch.Tensor) and lam.dim()
    if hidden.shape[:-1] != targets.shape or chunk_rows < 1 or (per_row and lam.shape != targets.shape):
        raise ValueError(f"cross_entropy: expected hidden (..., C), targets (...), lam a number or (...), chunk_rows >= 1; found "
                         f"{tuple(hidden.shape)}, {tuple(targets.shape)}, {getattr(lam, 'shape', lam)}, {chunk_rows}")
    return hidden.reshape(-1, hidden.size(-1))


def cross_entropy(hidden, weight, targets, chunk_rows=None, scale=1.0, smoothing=0.0):
    """Sum of -log softmax(scale * hidden @ weight.T)[target] over all rows, nats; 0 for no rows.

    smoothing: this share of the target is spread over all V tokens alike, the target among them (Szegedy et al. 2016).
    hidden (..., C), weight (V, C), targets (...) long. A sum, not a mean: the caller divides by the loss tokens of the
    whole step, so that the value depends on neither micro-batches nor ranks. Never holds more than chunk_rows * V logits
    (default: 128 MB of them), forward or backward. One backward per call.
    """
    chunk_rows = chunk_of(len(weight)) if chunk_rows is None else chunk_rows
    return _ChunkedCrossEntropy.apply(targets.reshape(-1), chunk_rows, (scale,), smoothing, None,
                                      _flat(hidden, targets, chunk_rows), weight)


def mixed_cross_entropy(h_strong, w_strong, h_weak, w_weak, targets, lam, chunk_rows=None, permute=None):
    """Eq. 6: sum of CE(softmax(z_mix), y) over all rows, nats, with z_mix = mix_logits(h_strong W_s^T, h_weak W_w^T, lam).

    h_* (..., C), w_* (V, C), targets (...) long; lam a number, or one per row (...): a row with lam = 1 takes plain
    cross-entropy on the strong logits, as settled tokens do. permute: (keys (...), share) of permute_logits() for the weak
    logits. Memory, reduction and backward as in cross_entropy.
    With one target of 3 and both models uniform the loss is log 3:

    >>> h, w = torch.zeros(1, 2), torch.ones(3, 2)
    >>> mixed_cross_entropy(h, w, h, w, torch.tensor([1]), lam=0.5).exp()
    tensor(3.)
    """
    chunk_rows = chunk_of(len(w_strong)) if chunk_rows is None else chunk_rows
    h_strong, h_weak = (_flat(h, targets, chunk_rows, lam) for h in (h_strong, h_weak))
    if isinstance(lam, torch.Tensor):
        lam = lam.reshape(-1, 1).to(h_strong.device) if lam.dim() else lam.item()
    permute = permute and (permute[0].reshape(-1), permute[1])
    return _ChunkedCrossEntropy.apply(targets.reshape(-1), chunk_rows, (lam, 1 - lam), 0.0, permute,
                                      h_strong, w_strong, h_weak, w_weak)


class Pair(nn.Module):
    """The strong model, in WMSS the weak one too, and the summed loss of a batch: the one module that DDP wraps."""

    def __init__(self, strong, weak, joint, chunk_rows, arm=Arm()):
        super().__init__()
        self.strong, self.weak, self.joint, self.chunk_rows, self.arm = strong, weak, joint, chunk_rows, arm
        self.every, self.seen = 0, []             # every so many loss rows: what the heads read and should say, for diagnose()
        if weak is not None:
            weak.requires_grad_(joint)

    def forward(self, x, y, loss_mask, lam, keys=None):
        where = send(loss_mask.flatten().nonzero()[:, 0], y.device)
        at_loss = lambda model: model(x).flatten(0, -2).index_select(0, where)  # (N, C): only loss positions reach the head
        h, y, h_weak = at_loss(self.strong), y.flatten()[where], None
        if self.weak is not None:
            with nullcontext() if self.joint else torch.no_grad():
                h_weak = at_loss(self.weak)
        if self.every:
            self.seen.append([t if t is None else t[::self.every].detach() for t in (y, h, h_weak)])
        if self.weak is None:
            return cross_entropy(h, self.strong.lm_head.weight, y, self.chunk_rows, lam if self.arm.d0 else 1.0, self.arm.smoothing)
        return mixed_cross_entropy(h, self.strong.lm_head.weight, h_weak, self.weak.lm_head.weight, y, lam, self.chunk_rows,
                                   keys if keys is None else (keys, self.arm.permuted))


# ----------------------------------------------------------------------------------------------------------------------
# set-up


class Run:
    """What all stages share: config, folder, rank, device, tokenizer, log."""

    def __init__(self, cfg):
        self.cfg, self.out = cfg, os.path.join("out", cfg.name)
        env = lambda key, default: int(os.environ.get(key, default))
        self.rank, self.world, local, here = env("RANK", 0), env("WORLD_SIZE", 1), env("LOCAL_RANK", 0), env("LOCAL_WORLD_SIZE", 1)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(cfg.threads or max(1, cores // here))            # torchrun sets OMP_NUM_THREADS=1
        self.device = torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.set_device(self.device)              # fp32 stays fp32: TF32 could move an entropy by as much as --tau
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        bf16 = cfg.dtype == "bf16" or (cfg.dtype == "auto" and cuda)
        self.autocast = lambda: torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)
        self.compile = {True: "on", False: "off", None: "auto"}[cfg.compile]
        self.commit = eval_math.commit()
        self.device_name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        self.dtype_name = "bf16" if bf16 else "fp32"

    def read_data(self):
        """The tokenizer, that of the base, and the samples D; rank 0 first, the others then find the text tokenised already."""
        cfg = self.cfg
        self.enc, self.data_report = tokenizer_of({}), []
        if cfg.task == "text":
            self.enc = with_template(tokenizer_of(read_config(cfg.base)[1]), cfg.template)
        self.tokenizer = fingerprint(self.enc)
        self.samples = training_set(asdict(cfg), self.enc, self.data_report.append)

    def path(self, *names):
        return os.path.join(self.out, *names)

    def say(self, *words):
        if self.rank == 0:
            print(*words, flush=True)

    def log(self, **record):
        if self.rank == 0:
            with open(self.path("log.jsonl"), "a") as f:
                f.write(json.dumps(record) + "\n")

    def read_log(self):
        """The records of log.jsonl; a line that a crash left half-written is none."""
        records = []
        with open(self.path("log.jsonl")) as f:
            for line in f:
                try:
                    records.append(json.loads(line))
                except ValueError:
                    continue
        return records

    def keep_log(self, wanted):
        """Drop the records that are not wanted, and half lines with them."""
        if self.rank == 0:
            kept = [json.dumps(r) + "\n" for r in self.read_log() if wanted(r)]
            write_atomically(self.path("log.jsonl"), lambda f: f.write("".join(kept).encode()))

    def on_first(self, act):
        """act() on rank 0; what it refuses ends all ranks."""
        message = [None]
        if self.rank == 0:
            try:
                act()
            except (SystemExit, ValueError, OSError) as e:
                message = [str(e)]
        if self.world > 1:
            dist.broadcast_object_list(message)
        if message[0]:
            raise SystemExit(message[0] if self.rank == 0 else 1)

    def open_folder(self):
        cfg, saved, data = self.cfg, self.path("config.json"), digest(self.samples)
        if os.path.exists(self.out) and os.listdir(self.out):
            if cfg.overwrite:
                if not os.path.isfile(saved):
                    raise SystemExit(f"train_wmss: {self.out} has no config.json, so it is not a run of ours; "
                                     "not deleted, choose another --name")
                shutil.rmtree(self.out)
            elif not cfg.resume:
                raise SystemExit(f"train_wmss: {self.out} exists; --resume goes on with it, --overwrite deletes it, "
                                 "--name chooses another")
            else:
                try:
                    with open(saved) as f:
                        old = json.load(f)
                except (OSError, ValueError):
                    raise SystemExit(f"train_wmss: cannot read {saved}, so there is nothing to resume; use --overwrite") from None
                diff = [f"--{k.replace('_', '-')} {old.get(k)} -> {v}" for k, v in asdict(cfg).items()
                        if old.get(k) != v and k not in FREE_ON_RESUME]
                if diff:
                    raise SystemExit(f"train_wmss: {self.out} was started with other values ({', '.join(diff)}); "
                                     "resume with the same ones or choose another --name")
                if old.get("digest", data) != data:                             # flags name files, not what is in them
                    raise SystemExit(f"train_wmss: {self.out} was started on other samples than --data (or this code) now gives; "
                                     "bring the old ones back or choose another --name")
        if cfg.resume:
            self.keep_log(lambda record: True)
        else:
            write_atomically(saved, lambda f: f.write(json.dumps({**asdict(cfg), "digest": data}, indent=1).encode()))
            open(self.path("log.jsonl"), "w").close()

    def header(self):
        versions = dict(python=platform.python_version(), torch=torch.__version__)
        self.log(commit=self.commit, versions=versions, device=self.device_name, ranks=self.world, dtype=self.dtype_name,
                 compile=self.compile, argv=sys.argv[1:], config=asdict(self.cfg))
        self.say(f"WMSS | {self.device_name} x {self.world} | {self.dtype_name} | compile {self.compile} | "
                 f"python {versions['python']}, torch {versions['torch']} | commit {self.commit}")
        words = [f"{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in asdict(self.cfg).items() if v not in ("", None, [])]
        line = ""
        for word in words + [""]:
            if word == "" or len(line) + len(word) > 118:
                self.say("  " + line)
                line = ""
            line += (", " if line else "") + word
        if self.cfg.preset in DEVIATIONS:
            self.say(f"  deviations from the paper: {DEVIATIONS[self.cfg.preset]}")
        for line in self.data_report:
            self.say(line)


# ----------------------------------------------------------------------------------------------------------------------
# training: one function for the base, SFT, WMSS and the baselines


def lr_at(step, steps, peak, warmup):
    """Linear warm-up over the first share of the steps, then linear decay that would reach 0 one step after the last."""
    rise = max(1, round(warmup * steps))
    return peak * min((step + 1) / rise, (steps - step) / max(1, steps - rise))


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) by PyTorch's own fused step. torch.optim.AdamW is the same to the bit, but making one imports
    PyTorch's compiler, which took a third of the time to a run's first step.

    state: for each parameter its exp_avg, exp_avg_sq (both of its shape) and step (a scalar), under torch.optim's names.
    """

    def __init__(self, params, weight_decay):
        self.params, self.weight_decay = params, weight_decay
        self.state = [dict(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p), step=torch.zeros((), device=p.device))
                      for p in params]

    @torch.no_grad()
    def step(self, lr):
        """Step where there is a gradient, and drop all gradients."""
        used = [(p, s) for p, s in zip(self.params, self.state) if p.grad is not None]
        means, squares, steps = ([s[name] for _, s in used] for name in ("exp_avg", "exp_avg_sq", "step"))
        adamw([p for p, _ in used], [p.grad for p, _ in used], means, squares, [], steps, lr=lr, beta1=0.9, beta2=0.95, eps=1e-8,
              weight_decay=self.weight_decay, fused=True, amsgrad=False, maximize=False)
        for p, _ in used:
            p.grad = None

    def load(self, state):
        """Go on from the .state of another; ValueError unless it has as many parameters."""
        for own, saved in zip(self.state, state, strict=True):
            for name, value in own.items():
                value.copy_(saved[name])


def sample_flops(model, samples):
    """Forward FLOPs of each sample -> (N,) float64."""
    n, n_loss = torch.tensor([(len(s.tokens) - 1, int(s.loss[1:].sum())) for s in samples], dtype=torch.float64).T
    return model.forward_flops(n, n * (n + 1) / 2, n_loss)


PASSES = {"": 3, "frozen": 4, "joint": 6}       # through one model, per step, in units of a forward pass; backward is two of them


def arm_of(cfg, name):
    """The Arm of that name, its Nones filled in from the flags."""
    arm = ARMS[name]
    return arm._replace(**{k: getattr(cfg, k) for k in ("weak", "gap") if getattr(arm, k) is None})


@torch.no_grad()
def diagnose(pair, cfg):
    """The norm of each branch's gradient, and what the loss rows that `pair` has seen of this step say (token_statistics)."""
    branches = dict(strong=pair.strong, weak=pair.weak if pair.joint else None)
    norms = {f"gnorm_{k}": nn.utils.get_total_norm([p.grad for p in m.parameters() if p.grad is not None]).item()
             for k, m in branches.items() if m is not None}
    y, h, h_weak = (torch.cat(t) if t[0] is not None else None for t in zip(*pair.seen))
    pair.seen = []
    z = lambda h, m: None if h is None else nn.functional.linear(h.float(), m.lm_head.weight.float())
    return norms | (token_statistics(z(h, pair.strong), y, z(h_weak, pair.weak), cfg.lam, cfg.tau, cfg.h) if len(y) else {})


def train(run, arm, strong, samples, batches, lr, weak=None, gaps=None, snapshots=(), how=ARMS["wmss"]):
    """Train strong (and weak) in place on the scheduled batches -> the final state: all of a checkpoint but the model.

    batches: one index tensor per optimizer step, from data.schedule(). weak: mix its logits in (WMSS); gaps: put its
    token mask to use. how: the Arm, for its loss. snapshots: steps after which snapshots/<arm>-<step>.pt is saved.
    The state is saved every save_every steps in resume-<arm>.pt, and taken up from there.
    """
    cfg, steps = run.cfg, len(batches)
    joint = weak is not None and (how.weak or cfg.weak) == "joint"
    for model in filter(None, (strong, weak)):
        model.checkpointing = cfg.checkpointing
    pair = Pair(strong, weak, joint, cfg.chunk_rows or None, how).to(run.device).train()
    params = [p for p in pair.parameters() if p.requires_grad]
    opt = AdamW(params, cfg.weight_decay)
    n_loss = torch.tensor([int(s.loss[1:].sum()) for s in samples])             # loss tokens per sample
    cost = sample_flops(strong, samples) * PASSES["" if weak is None else "joint" if joint else "frozen"]
    first, seconds = take_up(run, arm, strong, weak, opt)
    wide = run.device.type == "cuda" and strong.cfg.dim >= 1024                 # narrower: launches bound it, and compiled ones cost more
    if wide if cfg.compile is None else cfg.compile:
        for model in filter(None, (strong, weak)):
            model.compile_layers()
    ddp = DistributedDataParallel(pair, forward_sync_buffers=False, gradient_as_bucket_view=True) if run.world > 1 else pair
    log_every = max(1, min(cfg.log_every, steps // 8))                          # a short stage shows its curve too
    started = mark = time.time()
    tokens = 0

    def state(step, **more):
        return dict(arm=arm, step=step, cursor=step * cfg.batch_size, seconds=seconds + time.time() - started,
                    flops=float(sum(cost[b].sum() for b in batches[:step])), rng=torch.get_rng_state(),
                    config=asdict(cfg), commit=run.commit, tokenizer=run.tokenizer, tokenizer_files=run.enc.files, **more)

    for step in range(first, steps):
        rows = [samples[i] for i in batches[step].tolist()]
        step_tokens = int(n_loss[batches[step]].sum())                          # of all ranks and micro-batches
        now = lr_at(step, steps, lr, cfg.warmup)
        total, last = torch.zeros((), device=run.device), step == steps - 1
        logs = step == 0 or (step + 1) % log_every == 0 or (step + 1) % cfg.save_every == 0 or last
        pair.every = math.ceil(step_tokens / 128) if logs and run.rank == 0 else 0         # some 128 rows, of all micro-batches
        micros = micro_batches(rows, cfg.micro_batch, run.rank, run.world, cfg.tokens_per_batch)
        for i, batch in enumerate(micros):
            b, lam = batch.to(run.device), cfg.lam
            keys = ()
            # --- WMSS begin: settled tokens take plain cross-entropy, tokens in a gap the loss on mixed logits ---
            if weak is not None and gaps is not None:
                lam = send(torch.where(codes_of(gaps, batch.ids) > 0, cfg.lam, 1.0), run.device)
            if how.permuted:                        # another permutation for each token of each step, whatever it is batched with
                counts = n_loss[batch.ids.clamp(min=0)] * (batch.ids >= 0)
                nth = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
                keys = send(hash_ids(cfg.seed, step, batch.ids.repeat_interleave(counts), nth), run.device),
            # --- WMSS end (the mixing itself: Pair.forward; the curriculum: the weights that drew `batches`) ---
            sync = nullcontext() if run.world == 1 or i == len(micros) - 1 else ddp.no_sync()
            with sync:
                with run.autocast():
                    loss = ddp(b.x, b.y, b.loss_mask, lam, *keys)
                # a sum over tokens, divided once by those of the whole step; DDP averages over ranks => times world
                (loss * (run.world / max(1, step_tokens))).backward()
            total += loss.detach()
        found = diagnose(pair, cfg) if pair.seen and total.isfinite() else {}   # before the clip, and before the heads change
        gnorm = nn.utils.clip_grad_norm_(params, cfg.clip)
        opt.step(now)

        tokens += sum(len(s.tokens) - 1 for s in rows)
        saves = step + 1 in snapshots or (step + 1) % cfg.save_every == 0 or last
        whole = not saves or all(p.isfinite().all() for p in params)
        if logs or not whole:
            if run.world > 1:
                dist.all_reduce(total)
            value, speed = total.item() / max(1, step_tokens), tokens / max(1e-9, time.time() - mark)
            eta = (time.time() - started) / (step + 1 - first) * (steps - step - 1)
            mark, tokens = time.time(), 0
            if not (whole and math.isfinite(value) and math.isfinite(gnorm)):
                raise SystemExit(f"train_wmss: {arm} has diverged at step {step + 1} (loss {value:g}, gradient norm {gnorm:g}): "
                                 f"it has no checkpoint; start it again with a lower learning rate than {lr:g}")
            run.say(f"{arm:9s} step {step + 1:4d}/{steps} | loss {value:.4f} | lr {now:.1e} | gnorm {gnorm:.2f} | "
                    f"tok/s {speed:,.0f} | eta {int(eta) // 60}:{int(eta) % 60:02d}")
            run.log(arm=arm, step=step + 1, loss=value, lr=now, gnorm=float(gnorm), loss_tokens=step_tokens, tok_s=round(speed),
                    **found)
        if run.rank == 0 and step + 1 in snapshots:
            save_checkpoint(run.path("snapshots", f"{arm}-{step + 1:06d}.pt"), strong, **state(step + 1))
        if run.rank == 0 and (step + 1) % cfg.save_every == 0 and not last:
            save_checkpoint(run.path(f"resume-{arm}.pt"), strong, **state(
                step + 1, optimizer=opt.state, weak=weak.state_dict() if weak is not None else None))
    return state(steps)


def take_up(run, arm, strong, weak, opt):
    """Load resume-<arm>.pt into models and optimizer if there is one -> (first step to do, seconds already spent)."""
    path, meta = run.path(f"resume-{arm}.pt"), {}
    if run.cfg.resume and os.path.exists(path):
        saved, meta = load_checkpoint(path, run.device, run.tokenizer)
        if not {"arm", "step", "optimizer", "weak", "seconds", "rng"} <= meta.keys() or not isinstance(meta["optimizer"], list):
            raise SystemExit(f"train_wmss: {path} is no interim state of a run of this version; delete it, and its stage starts again")
    step = meta["step"] if meta.get("arm") == arm else 0
    # the log may have records of steps that will be done again
    run.keep_log(lambda record: record.get("arm") != arm or record.get("step", 0) <= step)
    if not step:
        return 0, 0.0
    strong.load_state_dict(saved.state_dict())
    if weak is not None:
        weak.load_state_dict(meta["weak"])
    opt.load(meta["optimizer"])
    torch.set_rng_state(meta["rng"])
    run.say(f"{arm}: resumed after step {step}")
    return step, meta["seconds"]


# ----------------------------------------------------------------------------------------------------------------------
# stages: each reads files, writes files, and is skipped when its files are there


def finish(run, arm, model, state):
    """The end of an arm: its checkpoint, then the interim state goes. Saved before anything is scored."""
    if run.rank == 0:
        save_checkpoint(run.path(f"{arm}.pt"), model, **state)
        if os.path.exists(run.path(f"resume-{arm}.pt")):
            os.remove(run.path(f"resume-{arm}.pt"))
    if run.world > 1:
        dist.barrier()


def checkpoint_of(run, t):
    """Path of M_t: 0 the base, 1 the SFT model, K + 1 the result."""
    cfg = run.cfg
    if t == 0:
        return cfg.base or run.path("base.pt")
    if t == 1:
        return cfg.sft or run.path("sft.pt")
    return run.path("wmss.pt" if t == cfg.rounds + 1 else f"wmss-round{t - 1}.pt")


def is_there(run, t):
    """Is M_t there: made by this run, or named by a flag, a name on the hub included?"""
    return bool((run.cfg.base, run.cfg.sft, "")[min(t, 2)]) or os.path.exists(checkpoint_of(run, t))


def gaps_path(run, t):
    return run.path("gaps.pt" if t == 1 else f"gaps-round{t}.pt")


def weak_path(run, t):
    return run.cfg.weak_snapshot if t == 1 and run.cfg.weak_snapshot else checkpoint_of(run, t - 1)


def stage_base(run):
    cfg = run.cfg
    if is_there(run, 0):
        return
    samples = corpus_set(run.enc, cfg.corpus, cfg.seed, cfg.noise, cfg.task)
    torch.manual_seed(cfg.seed)
    model = GPT(GPTConfig(vocab_size=run.enc.n_vocab, dim=cfg.dim, n_layers=cfg.n_layers, n_heads=cfg.n_heads))
    run.say(f"\nbase: {sum(p.numel() for p in model.parameters()):,} parameters, {len(samples):,} noisy samples")
    batches = schedule(len(samples), cfg.batch_size, cfg.seed, steps=cfg.base_steps)
    finish(run, "base", model, train(run, "base", model, samples, batches, cfg.base_lr))


def stage_sft(run, samples):
    cfg = run.cfg
    if is_there(run, 1):
        return
    model, _ = load_checkpoint(checkpoint_of(run, 0), "cpu", run.tokenizer)
    batches = schedule(len(samples), cfg.batch_size, cfg.seed, epochs=cfg.sft_epochs)
    run.say(f"\nsft: {len(samples):,} samples, {len(batches)} steps")
    snapshots = {len(batches) * (i + 1) // (cfg.snapshots + 1) for i in range(cfg.snapshots)} - {0}
    finish(run, "sft", model, train(run, "sft", model, samples, batches, cfg.sft_lr, snapshots=snapshots))


def needs_gaps(cfg):
    return cfg.gap != "none" or any(arm_of(cfg, name).gap != "none" for name in cfg.arm)


def stage_entropy(run, samples, t):
    """Stage 2 of round t: gaps between the weak snapshot and M_t over the training set -> gaps.pt."""
    cfg, path = run.cfg, gaps_path(run, t)
    if not needs_gaps(cfg) or os.path.exists(path):
        return
    started = time.time()
    weak, live, _ = load_pair(weak_path(run, t), checkpoint_of(run, t), run.tokenizer, run.device)
    try:
        gaps = find_gaps(weak, live, samples, tau=cfg.tau, h=cfg.h, alpha=cfg.alpha, beta=cfg.beta, gamma=cfg.gamma,
                         kind=cfg.weights, micro_batch=cfg.micro_batch, tokens_per_batch=cfg.tokens_per_batch, chunk_rows=cfg.chunk_rows or None,
                         rank=run.rank, world=run.world)
    except ValueError as e:
        raise SystemExit(f"train_wmss: {e}") from None
    mass = {}
    for s, w in zip(samples, gaps["weights"].tolist()):
        mass[s.family] = mass.get(s.family, 0.0) + w
    run.log(gaps=path, mass=mass)
    gaps.update(flops=2 * float(sample_flops(live, samples).sum()), seconds=time.time() - started, commit=run.commit,
                weak=weak_path(run, t), live=checkpoint_of(run, t), tokenizer=run.tokenizer)
    run.say(f"\nentropy: {gaps['weak']} -> {gaps['live']}\n{report(gaps, samples)}")
    if run.rank == 0:
        write_atomically(path, lambda f: torch.save(gaps, f))
    if run.world > 1:
        dist.barrier()


def read_gaps(run, t, samples):
    """gaps.pt of round t, checked against the data set that it is about to weigh and the models that it has to compare."""
    path = gaps_path(run, t)
    try:
        gaps = torch.load(path, weights_only=True)
        ids, counts = gaps["ids"].tolist(), gaps["offsets"].diff().tolist()
        made_for = (gaps["weak"], gaps["live"], gaps["tokenizer"])
        complete = len(gaps["codes"]) == gaps["offsets"][-1] and len(gaps["weights"]) == len(ids)
    except FileNotFoundError:
        raise SystemExit(f"train_wmss: expected {path}, found none; run the stage `entropy` first") from None
    except Exception as e:
        raise SystemExit(f"train_wmss: {path} is not a gaps file ({type(e).__name__}); "
                         "delete it and rerun the stage `entropy`") from None
    want = [s.id for s in samples]
    if ids != want:
        missing = next(iter(set(want) - set(ids)), "none, but others are there")
        raise SystemExit(f"entropy: {len(want):,} samples in the data but {len(ids):,} in {path} (first missing id {missing}); "
                         "delete it and rerun the stage `entropy`")
    expected = (weak_path(run, t), checkpoint_of(run, t), run.tokenizer)
    if not complete or counts != [int(s.loss[1:].sum()) for s in samples] or made_for != expected:
        raise SystemExit(f"entropy: {path} was made for other samples or models (weak, live, tokenizer: {', '.join(made_for)}; "
                         f"expected {', '.join(expected)}); delete it and rerun the stage `entropy`")
    return gaps


def stage3_epoch(cfg, t):
    """First epoch number of round t: fresh orders, and in round 1 the very ones that the other arms see."""
    return int(cfg.sft_epochs) + 2 + (t - 1) * (int(cfg.wmss_epochs) + 2)


def draw(run, samples, t, gap, **length):
    """Gaps of round t where `gap` asks for them, else None, and the batches drawn with them; length: as schedule() takes it."""
    cfg, gaps = run.cfg, read_gaps(run, t, samples) if gap != "none" else None
    weights = gaps["weights"] if gap in ("sample", "both") else None
    return gaps, schedule(len(samples), cfg.batch_size, cfg.seed, stage3_epoch(cfg, t), weights=weights, dedup=cfg.dedup, **length)


def steps_of(run, samples, name, cost):
    """Optimizer steps of an arm: those of wmss with these flags, all rounds together; for sft-flops as many as spend its FLOPs.

    cost: forward FLOPs per sample. That of wmss follows from what it draws: it need not have been trained.
    """
    cfg, steps, budget = run.cfg, 0, 0.0
    for t in range(1, cfg.rounds + 1):
        gaps, batches = draw(run, samples, t, cfg.gap, epochs=cfg.wmss_epochs)
        steps += len(batches)
        budget += PASSES[cfg.weak] * float(sum(cost[b].sum() for b in batches)) + (gaps or {}).get("flops", 0.0)
    if name != "sft-flops":
        return steps
    steps, cheapest = 0, 3 * float(cost.min()) * cfg.batch_size
    for batch in draw(run, samples, 1, "none", steps=int(budget / cheapest) + 1)[1]:
        if budget <= 0:
            break
        budget, steps = budget - 3 * float(cost[batch].sum()), steps + 1
    return steps


def stage_arm(run, samples, name, t=1):
    """Stage 3: M_t trained on as ARMS[name] says, in round t for wmss -> its checkpoint; of wmss the weak branch beside it."""
    cfg, arm, wmss = run.cfg, arm_of(run.cfg, name), name == "wmss"
    file = FILES.get(name, name) if not wmss or t == cfg.rounds else f"wmss-round{t}"
    if os.path.exists(run.path(f"{file}.pt")):
        return
    if arm.weak:
        weak, strong, meta = load_pair(weak_path(run, t), checkpoint_of(run, t), run.tokenizer)
    else:
        weak, (strong, meta) = None, load_checkpoint(checkpoint_of(run, t), "cpu", run.tokenizer)
    length = dict(epochs=cfg.wmss_epochs) if wmss else dict(
        steps=steps_of(run, samples, name, sample_flops(strong, samples)))
    gaps, batches = draw(run, samples, t, arm.gap, **length)
    drawn = torch.cat(batches)
    tokens = sum(int(samples[i].loss[1:].sum()) for i in drawn.tolist())
    lr = {"sft": cfg.sft_steps_lr, "sft-flops": cfg.sft_flops_lr}.get(name, cfg.wmss_lr)
    loss = (f"mixed logits, lam {cfg.lam:g}, weak {arm.weak}" + ", permuted" * bool(arm.permuted) if arm.weak else
            f"CE(lam z), lam {cfg.lam:g}" if arm.d0 else "plain cross-entropy" + f", smoothing {arm.smoothing:g}" * bool(arm.smoothing))
    run.say(f"\n{file}: {loss}, gap {arm.gap}, {len(batches)} steps | {len(drawn):,} samples drawn, "
            f"{(unique := len(drawn.unique())) / len(samples):.1%} of the data set seen, {tokens:,} loss tokens")
    run.keep_log(lambda record: record.get("draw") != file)
    run.log(draw=file, drawn=len(drawn), unique=unique, data=len(samples), loss_tokens=tokens)
    state = train(run, file, strong, samples, batches, lr, weak=weak, gaps=gaps if arm.gap in ("token", "both") else None, how=arm)
    # what this round and those before it cost, the entropy pass included: sft-flops is given the same
    spent = meta["spent"] if t > 1 else dict(steps=0, flops=0.0, seconds=0.0)
    cost = dict(steps=len(batches), flops=state["flops"] + (gaps or {}).get("flops", 0.0),
                seconds=state["seconds"] + (gaps or {}).get("seconds", 0.0))
    state["spent"] = {k: spent[k] + cost[k] for k in cost}
    if run.rank == 0 and wmss and t == cfg.rounds:
        save_checkpoint(run.path("weak.pt"), weak, **state)
    finish(run, file, strong, state)


def is_code(spec):
    return spec.partition("=")[0] in eval_code.EXPECTED


def sets_to_score(run):
    """What the stage score reads -> [(problems, wrap(prompt) -> text for the model or None, judge(rows) -> rows)]."""
    cfg, sets = run.cfg, []
    code = lambda problems: lambda rows: eval_code.judge(
        rows, problems, cfg.allow_code_execution, workers=max(1, os.cpu_count() // 2 // run.world))
    if cfg.task != "text":
        problems = TASKS[cfg.task](cfg.score_split, cfg.score_n)
        return [(problems, None, code(problems) if cfg.task == "toy-code" else eval_math.judge)]
    for spec in cfg.score_data:
        name, module = spec.partition("=")[0], eval_code if is_code(spec) else eval_math
        problems = module.load_problems(spec, cfg.score_n)
        judge = code(problems) if is_code(spec) else lambda rows, name=name: eval_math.judge(rows, name)
        system = eval_math.PAPER_SYSTEM if cfg.system == "paper" else cfg.system
        sets.append((problems, eval_math.chat(run.enc, system, raw=is_code(spec)), judge))
    return sets


def stage_score(run, samples):
    """Every model of the run on held-out problems -> the table, scores.json, answers/<model>.jsonl, report.html."""
    cfg = run.cfg
    paths = {"base": checkpoint_of(run, 0), "sft": checkpoint_of(run, 1), "fused": run.path("weak.pt")}
    paths = {name: paths.get(name) or run.path(f"{name}.pt") for name in ROWS}
    paths = {name: path for name, path in paths.items() if path in (cfg.base, cfg.sft) or os.path.exists(path)}
    if not paths:
        raise SystemExit(f"train_wmss: no checkpoint in {run.out} to score; run the stages before it")
    sets = sets_to_score(run)
    split = cfg.score_split if cfg.task != "text" else ", ".join(cfg.score_data)
    run.say(f"\nscore: {sum(len(problems) for problems, *_ in sets):,} problems of {cfg.task}, {split}, greedy")
    rows = []
    for name, path in paths.items():
        model, meta = load_checkpoint(path, run.device, run.tokenizer)
        how = dict(max_new_tokens=cfg.max_new_tokens, batch_size=cfg.eval_batch)
        if name == "fused":
            how.update(weak=model, lam=cfg.lam)
            model = load_checkpoint(run.path("wmss.pt"), run.device, run.tokenizer)[0]
        answers = []
        for problems, wrap, judge in sets:
            with run.autocast():
                share = judge(eval_math.complete(model.eval(), run.enc, problems[run.rank::run.world], wrap=wrap, **how))
            if run.world > 1:
                shares = [None] * run.world
                dist.all_gather_object(shares, share)
                share = [r for tier in zip_longest(*shares) for r in tier if r is not None]
            answers += share
        cost = {} if name in ("weak", "fused") else meta.get("spent") or meta
        rows.append(dict(model=name, **eval_math.summary(answers), flops=cost.get("flops"), seconds=cost.get("seconds"),
                         checkpoint=path, split=split))
        if run.rank == 0:
            eval_math.write_rows(run.path("answers", f"{name}.jsonl"), answers)
    record = dict(rows=rows, lam=cfg.lam, commit=run.commit, device=run.device_name, dtype=run.dtype_name, config=asdict(cfg))
    if run.rank == 0:
        write_atomically(run.path("scores.json"), lambda f: f.write(json.dumps(record, indent=1).encode()))
        gaps = read_gaps(run, 1, samples) if os.path.exists(gaps_path(run, 1)) else None
        page = html_report(f"WMSS: {cfg.name}", table(rows), run.read_log(), gaps, samples, run.enc)
        write_atomically(run.path("report.html"), lambda f: f.write(page.encode()))
    run.say(f"\n{table(rows)}\n\n{run.path('report.html')} shows the loss curves and the gaps")
    if errors := sum(r["errors"] for r in rows):
        raise SystemExit(f"train_wmss: {errors} programs could not be judged (status error in {run.path('answers')}); "
                         "they count neither way")


def table(rows):
    """The rows of scores.json as text. FLOPs and seconds: training of that row after the checkpoint that it starts from."""
    families = list(rows[0]["families"])
    lines = [f"{'model':14s}" + "".join(f"{f:>8s}" for f in families) +
             f"{'all':>8s}   {'95 % interval':14s}{'TFLOPs':>8s}{'seconds':>9s}"]
    for r in rows:
        spent = f"{'-':>8s}{'-':>9s}" if r["flops"] is None else f"{r['flops'] / 1e12:8.3f}{r['seconds']:9.1f}"
        lines.append(f"{'wmss (strong)' if r['model'] == 'wmss' else r['model']:14s}" +
                     "".join(f"{100 * r['families'][f]:8.1f}" for f in families) +
                     f"{100 * r['accuracy']:8.2f}   {100 * r['low']:5.2f} - {100 * r['high']:5.2f} {spent}")
    return "\n".join(lines)


def check_inputs(run):
    """Everything that can be refused is refused here, before the folder is touched and before any costly work."""
    cfg, stages = run.cfg, run.cfg.stages.split(",")
    paths = [getattr(cfg, k) for k in ("base", "sft", "weak_snapshot") if getattr(cfg, k)]
    for path in paths:                                          # first: what it was trained on decides what all else means
        task = task_of(read_config(path)[1])
        if task != cfg.task:
            raise SystemExit(f"train_wmss: {path} was trained on {task}, this run is on {cfg.task}; pass " +
                             ("--data" if task == "text" else f"--task {task}"))
    run.read_data()
    for path in paths:
        model_cfg, meta = check_pair(paths[0], path, run.tokenizer)
        shape = {k: getattr(model_cfg, k) for k in ("dim", "n_layers", "n_heads") if getattr(model_cfg, k) != getattr(cfg, k)}
        if shape and cfg.task != "text":
            raise SystemExit(f"train_wmss: {path} is a model of another shape than this run's; pass " +
                             " ".join(f"--{k.replace('_', '-')} {v}" for k, v in shape.items()))
        if cfg.task == "text" and cfg.max_len > model_cfg.max_seq_len:
            raise SystemExit(f"train_wmss: --max-len: expected at most {model_cfg.max_seq_len}, the positions of {path}, "
                             f"found {cfg.max_len}")
        if cfg.task == "text" and path != cfg.base and meta["config"] and tokenizer_of(meta).chat_template != run.enc.chat_template:
            raise SystemExit(f"train_wmss: {path} was trained in another chat format (--template {meta['config']['template']}) than "
                             f"this run's (--template {cfg.template}); pass the one that it was trained in")
        if cfg.overwrite and os.path.realpath(path).startswith(os.path.realpath(run.out) + os.sep):
            raise SystemExit(f"train_wmss: --overwrite would delete {path}, which this run is to start from; "
                             "choose another --name")
    if cfg.resume and not os.path.isdir(run.out):
        raise SystemExit(f"train_wmss: nothing to resume in {run.out}; leave --resume away")
    kept = lambda path: not cfg.overwrite and os.path.exists(path)
    for t, name in ((0, "base"), (1, "sft")):
        there = getattr(cfg, name) or kept(checkpoint_of(run, t))
        if not there and name not in stages and any(s in stages for s in STAGES[t + 1:4]):
            raise SystemExit(f"train_wmss: the stages {cfg.stages} need {checkpoint_of(run, t)}, which is not there; "
                             f"add the stage {name} or pass --{name} CHECKPOINT")
    if cfg.sft and not cfg.base and not cfg.weak_snapshot and not kept(run.path("base.pt")):
        raise SystemExit(f"train_wmss: --sft {cfg.sft} without --base: which base was it fine-tuned from? Pass it too")
    if "wmss" in stages and "entropy" not in stages and needs_gaps(cfg) and not kept(gaps_path(run, cfg.rounds)):
        raise SystemExit(f"train_wmss: the stage wmss needs {gaps_path(run, cfg.rounds)}, which is not there; "
                         "add the stage entropy, or leave the gaps away (--gap none)")
    if stages == ["score"] and not (paths or kept(run.path("base.pt"))):
        raise SystemExit(f"train_wmss: no checkpoint in {run.out} to score; run the stages before it")
    if "score" in stages:
        room = model_cfg.max_seq_len if cfg.task == "text" else GPTConfig.max_seq_len
        texts = [wrap(p.prompt) if wrap else p.prompt for problems, wrap, _ in sets_to_score(run) for p in problems]
        longest = max(map(len, run.enc.encode_batch(texts, allowed_special="all", num_threads=1)))
        if longest + cfg.max_new_tokens > room:
            raise SystemExit(f"train_wmss: --max-new-tokens: expected at most {room - longest}, found "
                             f"{cfg.max_new_tokens}; prompts have up to {longest} tokens, the models {room}")


def run_stages(run, samples):
    """The stages that the flags name; a stage whose files are there is skipped."""
    cfg, stages = run.cfg, run.cfg.stages.split(",")
    if "base" in stages:
        stage_base(run)
    if "sft" in stages:
        stage_sft(run, samples)
    for t in range(1, cfg.rounds + 1):
        if "entropy" in stages:
            stage_entropy(run, samples, t)
        if "wmss" in stages and "wmss" in cfg.arm:
            stage_arm(run, samples, "wmss", t)
    for name in cfg.arm:
        if "wmss" in stages and name != "wmss":
            stage_arm(run, samples, name)
    if "score" in stages:
        stage_score(run, samples)


def main(argv=None):
    cfg = parse(argv)
    run = Run(cfg)
    run.on_first(lambda: (check_inputs(run), run.open_folder()))
    if run.rank > 0:
        run.read_data()             # after rank 0, which leaves the tokenised text in the cache
    run.header()
    run_stages(run, run.samples)
    if run.world > 1:
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)           # all is written; gloo's threads abort the interpreter's own shutdown now and then (2 of 40 runs)


if __name__ == "__main__":
    main()
