"""Speed and memory of each part beside its naive form and its public peers, in one run: the sides
take turns (A B B A ...).

    python experiments/bench.py                      # every part; long on two cores
    python experiments/bench.py P3 P4 --json bench.json      # some; the numbers go to a file too
    python experiments/bench.py P1b --nanogpt ../nanoGPT/model.py    # github.com/karpathy/nanoGPT
    PYTHONPATH=OLD python experiments/bench.py P2authors --authors ../Weak-Driven-Learning
    python experiments/bench.py grade programs --data DATA  # gsm8k/test.jsonl, humaneval/Human...
    python experiments/bench.py plan           # memory of a GPU, by formulas
    python experiments/bench.py gpu gpu-generate                 # on a GPU
    python experiments/bench.py scaling              # how cost grows; or scaling-text, one of them
    python experiments/bench.py --quick              # toy size, to see it run; numbers mean nothing

A ratio above 1 means that ours is better; P2 is the cost of a step over that of SFT, lower is
better. First the sides must have computed the same thing: losses, entropies, tokens. Wall-clock
times; beside them the ratio of CPU seconds, which a neighbour on the same cores distorts less.
Sizes: bench.json. Shapes: B batch, T time, C width, V vocabulary.
"""

import importlib.util
import json
import math
import multiprocessing
import os
import platform
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from statistics import fmean, linear_regression, median
from tempfile import TemporaryDirectory
from unittest.mock import Mock, patch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import train_wmss  # first: it sets what torch reads from the environment

# isort: split
import peers
import torch
import torch.nn.functional as F
from analyse import HERE, parser_of
from peers import between, clocks, loss_tokens, timed
from plan import parameters, peak, table
from sweep import cpu_name

from data import Sample, micro_batches, toy_math
from entropy import measure
from eval_code import score
from eval_math import complete, grade, judge, summary
from model import GPT, GPTConfig
from plumbing.code_benchmarks import load_problems
from plumbing.controls import ARMS, Watch
from plumbing.decode import Decoder
from plumbing.files import commit, read_rows, write_text
from plumbing.loss import linear_cross_entropy
from plumbing.run import Folder, Ranks, Run
from plumbing.scoring import official_grader
from plumbing.text import load_text
from plumbing.tokenizer import toy_encoding

with open(os.path.join(HERE, "bench.json")) as sizes:
    SIZES = json.load(sizes)
SHAPES = SIZES["shapes"]
RESULTS = {}            # what main() returns; with --json a file holds it, also while it grows


def save():
    if RESULTS["run"]["json"]:
        write_text(RESULTS["run"]["json"], json.dumps(RESULTS, indent=1))


def race(inputs, **sides):
    """Every side on every input, in turns -> ({name: times}, {name: results}), a list each, one
    entry for each input. A side is a function of the input -> list of (wall, CPU) seconds, result.

    The order turns round from one input to the next: who goes second finds the machine warmer.
    """
    times = {name: [] for name in sides}
    results = {name: [] for name in sides}
    order = list(sides)
    for given in inputs:
        for name in order:
            spent, result = sides[name](given)
            wall, cpu = map(sum, zip(*spent, strict=True))
            print(f"{'':12s}{name:10s}{wall:8.2f} s{cpu:10.2f} s of CPU", flush=True)
            RESULTS["sides"].append(dict(side=name, wall=wall, cpu=cpu))
            save()
            times[name].append(spent)
            results[name].append(result)
        order.reverse()
    return times, results


def same(what, a, b, rtol):
    """SystemExit unless a and b agree, relative to the largest value: else times say nothing."""
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    if a.shape != b.shape or not (a - b).abs().max() <= rtol * b.abs().max():
        a, b = (v.flatten()[:4].tolist() for v in (a, b))
        raise SystemExit(f"bench: {what} differ, so their times say nothing: {a} and {b}")


def middle(rounds, clock=0):
    """Rounds of (wall, CPU) seconds -> the median of one of the clocks."""
    return median(t[clock] for spent in rounds for t in spent)


def entry(what, unit, peer_name, ours, peer, amount, goal, **more):
    """The record of one comparison. ours, peer: per round (wall, CPU) seconds of `amount` units."""
    spread = [middle([a]) / middle([b]) for a, b in zip(peer, ours, strict=True)]
    ratio, ratio_cpu = (middle(peer, k) / middle(ours, k) for k in (0, 1))
    rate = amount / middle(ours)
    return dict(what=what, ratio=ratio, ours=rate, peer=rate / ratio, peer_name=peer_name,
                unit=unit, spread=[min(spread), max(spread)], rounds=len(ours),
                ratio_cpu=ratio_cpu, goal=goal, more=more)


def peaks(what, peer_name, ours, peer, goal, **more):
    """The record of a comparison of memory. ours, peer: bytes at the peak, one for each round."""
    spread = [b / a for a, b in zip(ours, peer, strict=True)]
    return dict(what=what, ratio=median(peer) / median(ours), ours=median(ours) / 1e9,
                peer=median(peer) / 1e9, unit="GB", peer_name=peer_name,
                spread=[min(spread), max(spread)], rounds=len(ours), goal=goal, more=more)


def _as_rank(env, threads, act, args):      # in a process of its own
    os.environ.update(env)
    torch.set_num_threads(threads)
    return act(*args)


def apart(threads, act, *args, world=1):
    """act(*args) in fresh processes -> the result of each rank."""
    both = dict(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(20000 + os.getpid() % 20000))
    with ProcessPoolExecutor(world, multiprocessing.get_context("spawn")) as pool:
        ranks = [pool.submit(_as_rank, both | dict(RANK=str(rank), LOCAL_RANK=str(rank)), threads,
                             act, args) for rank in range(world)]
        return [rank.result() for rank in ranks]


def memory(kind="VmHWM"):
    """Bytes of this process: VmHWM its peak so far (ru_maxrss has its parent's), VmRSS now."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(kind))


def fresh(shape, seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**shape))


def gsm8k_like(shape, n=64):
    """n samples of random tokens with GSM8K's lengths, shuffled."""
    lengths = random.Random(0).sample(SIZES["lengths"], 64)
    g = torch.Generator().manual_seed(0)
    samples = []
    for i, (p, c) in enumerate(lengths):
        tokens = torch.randint(shape["vocab_size"], (p + c,), generator=g)
        samples.append(Sample(i, "", tokens, torch.arange(p + c) >= p))
    return samples[:n]


def prompts_of(samples):
    return [s.tokens[~s.loss].tolist() for s in samples]


def inputs_of(samples):
    """Tokens that a model reads of the samples."""
    return sum(len(s.tokens) - 1 for s in samples)


def batches_of(samples, n, size):
    """n batches of indices, in the order of the samples and from the start again"""
    return list((torch.arange(n * size) % len(samples)).view(n, size))


def rounds_of(samples, size):
    """Lists of 1 + size.steps batches, one per round; no sample returns before all were met."""
    n = size["steps"] + 1
    batches = batches_of(samples, size["rounds"] * n, size["batch"])
    return [batches[i:i + n] for i in range(0, len(batches), n)]


def spread_logits(model):
    """Random models' logits nearly tie and their entropies are all alike; this one's do not."""
    model.norm.weight.data.mul_(8)
    return model


class Bench(Run):
    """A run without a folder; each of its log lines is a reading of the clocks."""

    def __init__(self, threads, **config):
        cfg = train_wmss.Config(**dict(threads=threads, log_every=1) | config)
        folder = Folder(cfg)
        folder.log, folder.say, folder.keep_log = self.read_clocks, Mock(), Mock()
        super().__init__(cfg, Ranks(cfg), folder)
        self.enc, self.tokenizer = toy_encoding(), ""
        self.marks, self.losses, self.steps = [], [], []

    def read_clocks(self, **record):
        self.marks.append(clocks())
        self.steps.append(record["step"])
        self.losses.append(record["loss"])

    def train(self, arm, model, weak, samples, batches, lr=1e-4):
        """train_wmss.train(), which logs often here, for the clocks. What a logged step tells of
        its tokens, which no peer tells and training at one step in 50, is left out."""
        control = ARMS[arm].control and ARMS[arm].control(self.cfg)
        with patch.object(Watch, "begin"):
            return train_wmss.train(self, "bench", model, samples, batches, lr, weak=weak,
                                    joint=arm != "frozen", control=control)


def pair_of(arm, shape):
    """The strong model, and the weak one of an arm that has one."""
    return fresh(shape), None if arm == "sft-steps" else fresh(shape, 1)


def our_steps(threads, samples, arm, models, batches, lr=1e-4, **flags):
    """Train in place -> (wall, CPU) seconds of all steps but the first; losses"""
    run = Bench(threads, batch_size=len(batches[0]), **flags)
    run.train(arm, *models, samples, batches, lr)
    return between(run.marks), run.losses


def peak_of(act, shape):
    """-> bytes that act(shape) takes at its peak beyond what was there before, what it returns;
    a toy goes first, for what libraries and threads take"""
    for s in ({**SHAPES["toy"], "qk_norm": shape.get("qk_norm", False)}, shape):
        before = memory("VmRSS")
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")                        # the peak starts again from here
        result = act(s)
    return memory() - before, result


# ---- the parts ---------------------------------------------------------------------------------


def p1(part, size, args):
    """SFT on ragged text against a public trainer: the same samples, an epoch in each turn, at a
    rate of next to nothing, so that every order of the samples gives the same loss."""
    kind, batch, lr = part.removeprefix("P1"), size["batch"], 1e-9
    samples = peers.grouped(gsm8k_like(size["shape"]), batch, size["epoch"])
    model = spread_logits(fresh(size["shape"]))

    def epoch(steps, order):
        batches = list(order.view(-1, batch))
        spent, (_, losses) = timed(partial(steps, batches=batches, lr=lr))
        counts = [loss_tokens([samples[i] for i in rows.tolist()]) for rows in batches]
        return spent, fmean(losses, counts)

    def peer(order):
        if not kind:
            return epoch(partial(peers.their_steps, peers.llama(model), peers.padded_loss,
                                 samples), order)
        picked = [samples[i] for i in (order.sort().values if "group" in kind else order)]
        return peers.trainer_epoch(kind, peers.llama(model), picked, batch, lr)

    ours = partial(epoch, partial(our_steps, args.threads, samples, "sft-steps", (model, None)))
    orders = [torch.randperm(len(samples)) for _ in range(max(2, size["rounds"] - 1))]
    race([torch.arange(batch)], ours=ours, peer=peer)       # warm
    times, found = race(orders, ours=ours, peer=peer)
    same("the losses of the two trainings", found["ours"], found["peer"], 1e-4)
    name, goal = SIZES["trainers"][part]
    return {part: entry("SFT on GSM8K's lengths", "loss tokens/s", name, times["ours"],
                        times["peer"], loss_tokens(samples), goal)}


def p1b(size, args):
    """The same trainer on full blocks against nanoGPT's model of the same parameter count."""
    if not args.nanogpt:
        raise peers.Missing("pass --nanogpt MODEL.PY, of https://github.com/karpathy/nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt", args.nanogpt)
    nano = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = nano
    spec.loader.exec_module(nano)
    B, T = size["blocks"]
    ffn = size["shape"]["dim"] * 8 // 3                          # 12 C^2 a layer, as GPT-2 has
    model = fresh({**size["shape"], "n_kv_heads": None, "ffn_dim": ffn})
    c = model.cfg
    with redirect_stdout(None):
        peer = nano.GPT(nano.GPTConfig(
            block_size=T, vocab_size=c.vocab_size, n_layer=c.n_layers, n_head=c.n_heads,
            n_embd=c.dim, dropout=0.0, bias=False))
    n, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, peer))
    same("the numbers of parameters", n, theirs - T * c.dim, 0.01)      # no position embeddings
    samples = [Sample(i, "", torch.randint(c.vocab_size, (T + 1,)), torch.ones(T + 1).bool())
               for i in range(4 * B)]

    def block_loss(m, rows, n):
        x = torch.stack([s.tokens for s in rows])
        return m(x[:, :-1].contiguous(), x[:, 1:].contiguous())[1]

    times, _ = race(rounds_of(samples, {**size, "batch": B}),
                    ours=partial(our_steps, args.threads, samples, "sft-steps", (model, None)),
                    peer=partial(peers.their_steps, peer, block_loss, samples))
    return dict(P1b=entry(f"full blocks of {T}", "tokens/s", "nanoGPT's model of equal size",
                          times["ours"], times["peer"], B * T, 1.1))


def p2(size, args):
    """A step of joint and of frozen training over one of SFT, the same batches, all mixed."""
    samples = gsm8k_like(size["shape"])
    sides = {arm: partial(our_steps, args.threads, samples, arm, pair_of(arm, size["shape"]))
             for arm in ("sft-steps", "joint", "frozen")}
    times, _ = race(rounds_of(samples, size), **sides)
    goals = dict(joint="at most 1.9", frozen="at most 1.33")
    return {f"P2{arm}": entry(f"cost of a {arm} step in steps of SFT", "steps/s",
                              f"SFT against {arm}", times["sft-steps"], times[arm], 1, goal)
            for arm, goal in goals.items()}


def joint_steps(shape, tokens, steps, batch, path):
    """Joint training, ours or (path) the authors', theirs a sample a pass, on GSM8K's lengths or,
    with checkpointing, on a sample of so many tokens -> times, (losses, peak)"""
    def act(shape):
        models, samples = pair_of("joint", shape), gsm8k_like(shape)
        if tokens:
            row = torch.randint(shape["vocab_size"], (tokens,))
            samples = [Sample(0, "", row, torch.arange(tokens) >= tokens // 4)]
        batches = batches_of(samples, steps, batch)
        if not path:
            return our_steps(torch.get_num_threads(), samples, "joint", models, batches,
                             checkpointing=tokens > 0)
        models = peers.authors_model(path, *models, tokens > 0)
        return peers.their_steps(models, peers.padded_loss, samples, batches, 1)

    peak, (times, losses) = peak_of(act, shape)
    return times, (losses, peak)


def p2authors(part, size, args):
    """A joint step beside that of the authors' release: its speed on GSM8K's lengths or (GB) its
    peak of memory on a sample as long as theirs."""
    if not args.authors:
        raise peers.Missing("pass --authors, https://github.com/chenzehao82/Weak-Driven-Learning")
    size, of = size["authors"], "the authors' model"
    shape, tokens, batch = SHAPES[size["shape"]], size["long"], size["batch"]
    given = (tokens, 2, 1) if part == "P2authorsGB" else (0, size["steps"] + 1, batch)

    def side(path):
        return lambda _: apart(args.threads, joint_steps, shape, *given, path)[0]

    rounds = range(1 if part == "P2authorsGB" else size["rounds"])
    times, found = race(rounds, ours=side(""), peer=side(args.authors))
    (losses, ours), (theirs, peer) = found["ours"][0], found["peer"][0]
    same("the losses", losses, theirs, 2e-4)
    if part == "P2authors":
        return {part: entry(f"joint step, {batch} samples", "steps/s", of, times["ours"],
                            times["peer"], 1, 1.5)}
    state = 32 * parameters(GPTConfig(**shape))     # weights, gradients, moments of both
    return {part: peaks(f"peak of a joint step, {tokens:,} tokens, checkpointing", of, [ours],
                        [peer], 4.0, of_which_state_gb=state / 1e9,
                        ratio_beyond_state=(peer - state) / max(1, ours - state))}


def naive_mixed_loss(branches, y):
    """The official loss, restated: both models' full logits stacked, fused, upcast."""
    (lam, h_s, w_s), (_, h_w, w_w) = branches
    z_s, z_w = torch.stack([h_s @ w_s.T, h_w @ w_w.T])
    return F.cross_entropy((lam * z_s + (1 - lam) * z_w).float(), y, reduction="sum")


def loss_once(loss_of, rows, vocab, width, rounds=1):
    """Forward and backward of the mixed loss -> times, and a dict: peak bytes beyond what was there
    before, those of the gradients handed to the caller, samples of loss and gradients."""
    g = torch.Generator().manual_seed(0)
    h_s, h_w = (torch.randn(rows, width, generator=g).requires_grad_() for _ in range(2))
    w_s, w_w = (torch.randn(vocab, width, generator=g).mul_(width ** -0.5).requires_grad_()
                for _ in range(2))
    y = torch.randint(vocab, (rows,), generator=g)
    (torch.randn(8, 8) @ torch.randn(8, 8)).sum()         # the libraries' own buffers do not count
    times, before = [], memory("VmRSS")
    for _ in range(rounds):
        for t in (h_s, h_w, w_s, w_w):
            t.grad = None
        start = clocks()
        loss = loss_of([(0.5, h_s, w_s), (0.5, h_w, w_w)], y)
        loss.backward()
        times += between([start, clocks()])
    grads = (h_s.grad, w_s.grad, h_w.grad, w_w.grad)
    return times, dict(peak=memory() - before, grads=sum(t.numel() * 4 for t in grads),
                       loss=loss.item(), probe=[t[:64].double().norm().item() for t in grads])


def p3(size, args):
    """Peak memory of the mixed loss beyond hidden states and weights, in fresh processes."""
    rows, vocab, width = size["loss"]

    def side(loss_of):
        return lambda _: apart(args.threads, loss_once, loss_of, rows, vocab, width)[0]

    times, found = race(range(size["loss_rounds"]), ours=side(linear_cross_entropy),
                        naive=side(naive_mixed_loss))
    a, b = found["ours"][0], found["naive"][0]
    same("the losses", a["loss"], b["loss"], 1e-5)
    same("the gradients", a["probe"], b["probe"], 1e-4)
    ours, naive = ([x["peak"] for x in found[name]] for name in ("ours", "naive"))
    wall, cpu = (middle(times["ours"], k) / middle(times["naive"], k) for k in (0, 1))
    grads = a["grads"]
    return dict(P3=peaks(
        f"peak of the mixed loss, {rows:,} tokens, V {vocab:,}, width {width:,}",
        "both full logits stacked, fused, upcast", ours, naive, 8.0, time_over_naive=wall,
        time_over_naive_cpu=cpu, of_which_gradients_gb=grads / 1e9,
        ratio_beyond_gradients=(median(naive) - grads) / max(1, median(ours) - grads)))


@torch.no_grad()
def naive_entropy(model, samples):
    """The official entropy pass, restated: batch 1, all logits, fp32, log(p + eps)."""
    out = []
    for s in samples:
        p = torch.softmax(model.logits(s.tokens[None, :-1])[0].float(), dim=-1)        # (T, V)
        out.append(-(p * torch.log(p + 1e-12)).sum(-1)[s.loss[1:]])     # the official is off by one
    return torch.cat(out)


def p4(size, args):
    """Entropies of two models against batch 1."""
    samples = gsm8k_like(size["shape"], size["entropy"])
    weak, live = (spread_logits(fresh(size["shape"], seed)) for seed in (0, 1))
    ours = partial(timed, measure, weak, live)
    naive = partial(timed, lambda some: [naive_entropy(m, some) for m in (weak, live)])
    ours(samples[:2])                                            # warm
    times, found = race([samples] * size["rounds"], ours=ours, naive=naive)
    for name, want in zip(("ent_weak", "ent_live"), found["naive"][0], strict=True):
        same("the entropies", getattr(found["ours"][0], name), want, 1e-4)
    tokens = 2 * inputs_of(samples)                              # of both models
    return dict(P4=entry("entropies of two models", "tokens/s", "batch 1, full fp32 probabilities",
                         times["ours"], times["naive"], tokens, 5.0))


def p5(size, args):
    """Greedy generation, as many tokens for every prompt; theirs also with a static cache, compiled
    but for --quick."""
    n, prompts = size["new_tokens"], prompts_of(gsm8k_like(size["shape"], size["prompts"]))
    model = spread_logits(fresh(size["shape"]).eval())
    theirs = partial(peers.generate_like_transformers, peers.llama(model).eval(), n)
    sides = dict(ours=partial(model.generate, max_new_tokens=n), hf=theirs,
                 static=partial(theirs, **peers.compiled_cache(not args.quick)))
    record = {}
    model.generate(prompts[:2], 2)                               # warm
    try:
        sides["static"](prompts)                                 # compiles, too
    except Exception as e:              # of the compiler: several classes
        del sides["static"]
        record["P5static"] = dict(not_measured=f"torch.compile: {type(e).__name__}: {e}"[:200])
    turns = {name: partial(timed, act) for name, act in sides.items()}
    times, found = race([prompts] * max(2, size["rounds"] // 2), **turns)
    what = f"greedy, {len(prompts)} prompts, {n} new tokens"
    for name in [*sides][1:]:
        same("the tokens", found["ours"][0], found[name][0], 0)
        record["P5" + name] = entry(what, "new tokens/s", f"transformers' generate() ({name})",
                                    times["ours"], times[name], n * len(prompts), 1.3)
    return record


def step_of_rank(shape, batch, steps, sync):
    """As the rank that the environment names -> rank, (times, losses), bytes at its peak."""
    if not sync:                     # no gradient is exchanged: what these cores can do at best
        Ranks.data_parallel = lambda ranks, module: module
    samples, before = gsm8k_like(shape), memory("VmRSS")
    found = our_steps(1, samples, "sft-steps", (fresh(shape), None),
                      batches_of(samples, steps + 1, batch))
    return int(os.environ["RANK"]), found, memory() - before


def p7(size, args):
    """A step of one batch on one rank and on two; beside it two ranks that exchange nothing."""
    def side(world, sync):
        return lambda _: min(apart(1, step_of_rank, size["shape"], 2 * size["batch"],
                                   size["steps"], sync, world=world))[1]

    times, losses = race([0, 1], one=side(1, True), two=side(2, True), alone=side(2, False))
    same("the losses of one rank and two", losses["one"][0], losses["two"][0], 1e-4)
    return dict(P7=entry("step on two gloo ranks", "steps/s", "one rank (ideal: 2)", times["two"],
                         times["one"], 1, 1.7,
                         without_exchange=middle(times["one"]) / middle(times["alone"])))


def graders(size, args):
    """Verdicts on worked answers, every second one wrong: ours beside the paper's scorer."""
    if args.data:
        rows = [row["answer"] for _, row in read_rows(args.data + "/gsm8k/test.jsonl")]
    else:
        rows = [f"{p.completion} #### {p.answer}" for p in toy_math("test", size["answers"])]
    pairs, said = [], "none"
    for i, row in enumerate(rows[:size["answers"]]):
        body, _, gold = row.rpartition("#### ")
        said = said if i % 2 else gold                      # or that of the row before
        pairs.append((f"{body}\nThe answer is \\boxed{{{said}}}.", gold))
    official = official_grader()
    times, found = race(
        [pairs] * size["rounds"], ours=partial(timed, lambda a: [grade(*p).correct for p in a]),
        peer=partial(timed, lambda a: [official(*p) for p in a]))
    same("the verdicts", found["ours"][0], found["peer"][0], 0)
    return dict(grade=entry(f"grading {len(pairs)} answers", "answers/s", "math-verify",
                            times["ours"], times["peer"], len(pairs), "none"))


def programs(size, args):
    """Published solutions and their tests in our sandbox, and as HumanEval runs them."""
    data = f"humaneval={args.data}/humaneval/HumanEval.jsonl.gz" if args.data else "toy-code"
    jobs = [(p, p.answer) for p in load_problems(data)[:size["programs"]]]
    ours = partial(score, jobs, workers=args.threads, allow_code_execution=True)
    times, found = race(range(size["rounds"]), ours=lambda _: timed(ours),
                        peer=lambda _: timed(peers.run_plainly, jobs, args.threads))
    same("the verdicts", [v.status == "pass" for v in found["ours"][0]], found["peer"][0], 0)
    return dict(programs=entry(f"running {len(jobs)} programs", "programs/s",
                               "HumanEval's harness, unconfined", times["ours"], times["peer"],
                               len(jobs), "none"))


def row(name, *cells):
    print(f"{name:>34s}" + "".join(f"{cell:>16s}" for cell in cells), flush=True)


def step_point(shape, T, V, layers, batch):
    """(seconds, peak bytes beyond the model) of forward + backward with the loss on full blocks."""
    model = fresh({**shape, "vocab_size": V, "n_layers": layers})
    x = torch.randint(V, (batch, T + 1))

    def step():
        h = model(x[:, :-1]).flatten(0, 1)                       # (B T, C)
        linear_cross_entropy([(1.0, h, model.lm_head.weight)], x[:, 1:].flatten()).backward()

    before = memory("VmRSS")
    step()
    return middle([timed(step)[0] for _ in range(3)]), memory() - before


def loss_point(_, tokens, V):
    """(seconds, peak bytes beyond inputs and gradients) of the mixed loss, forward + backward."""
    times, found = loss_once(linear_cross_entropy, tokens, V, 64, 3)
    return middle([times]), found["peak"] - found["grads"]


def rank_point(shape, ranks):
    """(seconds, peak bytes of a rank) of a step whose batch of 8 is shared by gloo ranks."""
    found = apart(1, step_of_rank, shape, 8, 2, True, world=ranks)
    return middle([min(found)[1][0]]), max(peak for _, _, peak in found)


def spent_on(act, *args):
    """(seconds, peak bytes beyond what was there before) of act(*args)."""
    before = memory("VmRSS")
    ((seconds, _),), _ = timed(act, *args)
    return seconds, memory() - before


def entropy_point(_, samples):
    """Of the entropy pass of two tiny models over samples of 24 tokens."""
    cut = [(s.tokens[-24:], s.loss[-24:]) for s in gsm8k_like(SHAPES["toy"])]
    some = [Sample(i, "", *cut[i % 64]) for i in range(samples)]
    return spent_on(measure, fresh(SHAPES["toy"]), fresh(SHAPES["toy"], 1), some)


def text_point(_, rows, characters):
    """Of reading and tokenising a file, one token a character."""
    with TemporaryDirectory() as folder:
        with open(folder + "/rows.jsonl", "w") as f:
            for i in range(rows):
                f.write(json.dumps(dict(prompt=f"{i}:", completion="7" * (characters - 30))) + "\n")
        return spent_on(partial(load_text, [f.name], toy_encoding(), cache=folder))


def score_point(_, problems):
    """Of answering, grading and summing up problems, with a tiny model."""
    enc, asked = toy_encoding(), toy_math("train", problems)
    model = fresh({**SHAPES["toy"], "vocab_size": enc.n_vocab}).eval()
    return spent_on(lambda: summary(judge(complete(model, enc, asked, max_new_tokens=16))))


GROWTH = dict(step=step_point, loss=loss_point, ranks=rank_point, text=text_point,
              entropy=entropy_point, scores=score_point)


def scaling(kinds, size, args):
    """How cost grows, one dimension changed at a time, and the exponent k of a fit cost = c n^k."""
    record = RESULTS.setdefault("scaling", {})
    for kind in kinds:
        growth, points, exponents = size["growth"][kind], [], {}
        base = size["base"].get(kind, dict.fromkeys(growth))
        record[kind] = dict(points=points, exponents=exponents)
        row(kind, *base, "seconds", "GB")
        for name, values in growth.items():
            for value in values:
                point = {**base, name: value}
                ((seconds, peak),) = apart(args.threads, GROWTH[kind], size["shape"],
                                           *point.values())
                points.append(dict(point, seconds=seconds, gb=max(peak, 1) / 1e9))
                where = map("{:,}".format, point.values())
                row(kind, *where, f"{seconds:.3f}", f"{peak / 1e9:.3f}")
                save()
            logs = [[math.log(p[of]) for p in points[-len(values):]]
                    for of in (name, "seconds", "gb")]
            exponents[name] = [linear_regression(logs[0], costs).slope for costs in logs[1:]]
            row(f"exponent in {name}", *[""] * len(base), *(f"{k:.2f}" for k in exponents[name]))
    return {"scaling": record}


def footprint(shape, ranks, parallel, arm, passes, samples):
    """Two steps as the rank that the environment names -> bytes that they took at their peak."""
    def act(s):
        run = Bench(1, batch_size=ranks * samples, micro_batch=samples // passes,
                    parallel=parallel, chunk_rows=128)
        given = gsm8k_like(s)
        run.train(arm, *pair_of(arm, s), given, batches_of(given, 2, ranks * samples))

    return peak_of(act, shape)[0]


def plan(size, args):
    """Memory of a GPU, from formulas; and the formulas beside peaks measured on this CPU."""
    print(table())
    shape, n, record = {**size["shape"], "n_layers": 2}, size["batch"] // 2, {}
    samples = gsm8k_like(shape)
    row("measured on the CPU", "formula GB", "peak GB", "ratio")
    for case in SIZES["planned"][:2 if args.quick else None]:
        ranks, parallel, arm, passes = case
        tokens = []                             # of each pass of each rank
        for step in batches_of(samples, 2, ranks * n):
            for rank in range(ranks):
                rows = micro_batches([samples[i] for i in step], n // passes, rank, ranks)
                tokens += [len(b.y) for b in rows]
        want = peak(GPTConfig(**shape), arm, parallel, ranks, passes, tokens=max(tokens),
                    kind="fp32", chunk_rows=128)
        with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="1000000"):      # freed is given back
            got = max(apart(1, footprint, shape, *case, n, world=ranks))
        name = f"{arm}, {ranks} x {parallel}, passes {passes}"
        record[name] = dict(formula=want / 1e9, peak=got / 1e9, ratio=want / got)
        row(name, *(f"{value:.3f}" for value in record[name].values()))
    return {"plan": record}


def need_gpu(args):
    """The device; peers.Missing where it is no GPU, but for --quick."""
    if not torch.cuda.is_available() and not args.quick:
        raise peers.Missing("no GPU here")
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_steps(shape, samples, batch, steps, tokens_per_batch, arm, compiled, device):
    """Train through train(), or (arm "peer") transformers' model, padded, a quarter at a time ->
    dict: seconds per step (the first ones left out), FLOP/s, seconds of the first step, loss."""
    batches = batches_of(samples, steps, batch)
    if arm == "peer":
        times, losses = peers.their_steps(peers.llama(fresh(shape)).to(device), peers.padded_loss,
                                          samples, batches, batch // 4)
        return dict(seconds=fmean(wall for wall, _ in times[2:]), flops=math.nan, first=math.nan,
                    loss=losses[0])
    run = Bench(0, batch_size=batch, micro_batch=batch, tokens_per_batch=tokens_per_batch,
                compile=compiled, log_every=max(1, steps // 4))
    models = pair_of(arm, shape)
    torch.compiler.reset()
    start = time.perf_counter()
    state = run.train(arm, *models, samples, batches, lr=1e-5)
    span, n = run.marks[-1][0] - run.marks[1][0], run.steps[-1] - run.steps[1]
    return dict(seconds=span / n, flops=state["flops"] / steps * n / span,
                first=run.marks[0][0] - start, loss=run.losses[0])


def gpu(size, args):
    """MFU of SFT and joint steps, compiled or not, beside transformers."""
    device = need_gpu(args)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((v for k, v in SIZES["flops"].items() if k in card), math.nan)
    record, (batch, tokens_per_batch, shapes) = dict(card=card), size["gpu"]
    print(f"{card}: {batch} samples a step, bf16 autocast; MFU of {peak / 1e12:.0f} TFLOP/s")
    row("", "s/step", "tok/s", "MFU", "GB", "first step, s")
    for shape_name, (steps, *arms_of) in shapes.items():
        shape = SHAPES[shape_name]
        samples = gsm8k_like(shape)
        sides = {f"{arm}, compiled" if compiled else arm: (arm, compiled)
                 for compiled, arms in enumerate(arms_of) for arm in arms}
        for what, (arm, compiled) in {**sides, "sft-steps, transformers": ("peer", False)}.items():
            n = steps // 4 if arm == "permuted" else steps   # slow, and no goal
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                r = gpu_steps(shape, samples, batch, n, tokens_per_batch, arm, compiled, device)
            except torch.cuda.OutOfMemoryError:
                row(f"{shape_name} {what}", "out of memory")
                continue
            r["tokens"] = inputs_of(samples[:batch]) / r["seconds"]
            r["memory"] = torch.cuda.max_memory_allocated()
            record[f"{shape_name} {what}"] = r
            row(f"{shape_name} {what}", f"{r['seconds']:.4f}", f"{r['tokens']:,.0f}",
                f"{r['flops'] / peak:.1%}", f"{r['memory'] / 1e9:.1f}", f"{r['first']:.1f}")
            if what.startswith("sft-steps"):
                same("the losses", r["loss"], record[f"{shape_name} sft-steps"]["loss"], 2e-2)
    return {"gpu": record}


def gpu_generate(size, args):
    """Generation with and without CUDA graphs (no token differs: tests/test_cuda.py)."""
    device, record = need_gpu(args), {}
    name, n, times = ("toy", 8, 1) if args.quick else ("SmolLM2-135M", 256, 4)
    shape = SHAPES[name]
    model, prompts = fresh(shape).to(device).eval(), prompts_of(gsm8k_like(shape) * times)
    peer = peers.llama(fresh(shape)).eval().to(device, torch.bfloat16 if device == "cuda" else None)

    def ours(graphs):
        with (patch.object(Decoder, "graphs", graphs),
              torch.autocast(device, torch.bfloat16, enabled=device == "cuda")):
            model.generate(prompts, n)

    sides = {"CUDA graphs": partial(ours, True), "no graphs": partial(ours, False),
             "transformers": partial(peers.generate_like_transformers, peer, n, prompts)}
    row(f"greedy, {len(prompts)} prompts, {n} new tokens", "seconds", "tok/s")
    for what, act in sides.items():
        act()
        low, seconds, high = sorted(timed(act)[0][0][0] for _ in range(3))
        record[what] = dict(seconds=seconds, spread=[low, high])
        row(what, f"{seconds:.2f}", f"{len(prompts) * n / seconds:,.0f}")
    return {"gpu-generate": record}


PARTS = {part: partial(p1, part) for part in SIZES["trainers"]}
PARTS |= {part: partial(p2authors, part) for part in ("P2authors", "P2authorsGB")}
PARTS |= dict(P1b=p1b, P2=p2, P3=p3, P4=p4, P5=p5, P7=p7, grade=graders, programs=programs)
VIEWS = {"plan": plan, "gpu": gpu, "gpu-generate": gpu_generate,
         "scaling": partial(scaling, tuple(GROWTH))}
VIEWS |= {f"scaling-{kind}": partial(scaling, (kind,)) for kind in GROWTH}


def show(record):
    for part, r in record.items():
        if "not_measured" in r:
            print(f"{part:12s}not measured: {r['not_measured']}", flush=True)
        elif "ratio" in r:
            words = [f"CPU {r['ratio_cpu']:.2f}"] if "ratio_cpu" in r else []
            words += [f"{name.replace('_', ' ')} {value:.2f}" for name, value in r["more"].items()]
            print(f"{part:12s}{r['what']}: {r['ours']:,.4g} against {r['peer']:,.4g} {r['unit']}, "
                  f"{r['peer_name']}: {r['ratio']:.2f}x ({r['spread'][0]:.2f}-"
                  f"{r['spread'][1]:.2f}), goal {r['goal']}, {', '.join(words)}", flush=True)


def main(argv=None):
    parser = parser_of(__doc__)
    flag = parser.add_argument
    flag("parts", nargs="*", metavar="PART",
         help=f"{' '.join(PARTS)} (the default: all of these), {' '.join(VIEWS)}")
    flag("--json", metavar="FILE", help="write the numbers there")
    flag("--threads", type=int, default=len(os.sched_getaffinity(0)), help="[all cores]")
    flag("--nanogpt", metavar="PATH", help="nanoGPT's model.py, the peer of P1b")
    flag("--authors", metavar="FOLDER", help="the authors' released code, the peer of P2authors")
    flag("--data", metavar="FOLDER", help="of GSM8K and HumanEval, for grade and programs")
    flag("--quick", action="store_true", help="toy sizes: does every part run?")
    args = parser.parse_args(argv)
    unknown = [p for p in args.parts if p not in PARTS | VIEWS]
    if unknown:
        known = ", ".join(PARTS | VIEWS)
        raise SystemExit(f"bench: unknown part {', '.join(unknown)}; expected some of {known}")
    torch.set_num_threads(args.threads)
    size = "quick" if args.quick else "full"
    head = dict(commit=commit(), torch=torch.__version__, python=platform.python_version(),
                cpu=cpu_name(), threads=args.threads, load=os.getloadavg()[0], size=size)
    print("bench | " + " | ".join(f"{k} {v}" for k, v in head.items()), flush=True)
    RESULTS.clear()
    RESULTS.update(run=dict(head, json=args.json), sides=[])
    given = SIZES[size] | dict(shape=SHAPES[SIZES[size]["shape"]])
    for part in args.parts or PARTS:
        try:
            record = (PARTS | VIEWS)[part](given, args)
        except peers.Missing as missing:                           # a peer that is not there
            record = {part: dict(not_measured=str(missing.args[0]))}
        show(record)
        RESULTS.update(record)
        save()
    return RESULTS


if __name__ == "__main__":
    main()
