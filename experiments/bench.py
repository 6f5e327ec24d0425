"""Speed and memory of each part beside its naive form and its public peers, in one run: the sides
take turns (A B B A ...).

    python experiments/bench.py                      # every part; long on two cores
    python experiments/bench.py P3 P4 --json bench.json      # some; the numbers go to a file too
    python experiments/bench.py P1b --nanogpt ../nanoGPT/model.py    # github.com/karpathy/nanoGPT
    python experiments/bench.py plan                 # memory of a GPU: formulas, and their check
    python experiments/bench.py scaling              # step and loss against T, V, layers, batch
    python experiments/bench.py gpu gpu-generate     # on a GPU, beside transformers
    python experiments/bench.py --quick              # toy size, to see it run; numbers mean nothing

A ratio above 1 means that ours is better; P2 is the cost of a step over that of SFT, lower is
better. Before anything is told, the sides must have computed the same thing: the same losses,
entropies, tokens. Wall-clock times; the ratio of CPU seconds stands beside that of the wall clock,
since a neighbour on the same cores distorts it less (one thread: hardly at all).

Shapes: B batch, T time, C width, V vocabulary, N rows (tokens) with a loss.
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
from contextlib import redirect_stdout
from functools import partial
from statistics import fmean, median
from unittest.mock import patch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import train_wmss  # first: it sets what torch reads from the environment

# isort: split
import torch
import torch.nn.functional as F
from analyse import parser_of
from plan import peak, table
from sweep import cpu_name
from torch.nn.utils.rnn import pad_sequence

from data import Sample, micro_batches
from entropy import measure
from model import GPT, GPTConfig
from plumbing.controls import ARMS, Watch
from plumbing.decode import Decoder
from plumbing.files import commit, write_text
from plumbing.loss import chunk_of, linear_cross_entropy
from plumbing.run import Folder, Ranks, Run
from plumbing.tokenizer import toy_encoding

# (prompt, completion) tokens of 64 problems at even quantiles of the total length in GSM8K's train
# split: SmolLM2's tokenizer, end token included; mean 62 + 125, as of all 7,473 (61 + 126; the
# longest has 540)
GSM8K_LENGTHS = [
    (26, 57), (37, 54), (35, 61), (39, 61), (38, 66), (47, 61), (48, 63), (50, 64), (37, 80),
    (42, 77), (64, 58), (39, 86), (42, 86), (30, 100), (45, 87), (51, 83), (44, 92), (42, 97),
    (52, 89), (49, 95), (48, 98), (51, 97), (40, 111), (27, 126), (80, 76), (38, 120), (87, 73),
    (61, 101), (46, 119), (58, 109), (88, 82), (76, 96), (71, 104), (68, 110), (49, 132), (74, 109),
    (62, 124), (50, 139), (62, 130), (60, 135), (64, 135), (60, 142), (53, 152), (137, 71),
    (45, 167), (58, 157), (60, 159), (43, 180), (89, 138), (74, 156), (77, 158), (77, 163),
    (84, 161), (90, 160), (67, 190), (67, 196), (111, 161), (60, 221), (108, 181), (118, 183),
    (94, 221), (73, 258), (82, 270), (114, 293)]

# SmolLM2-135M, 4 of its 30 layers
SHAPE = dict(vocab_size=49152, dim=576, n_layers=4, n_heads=9, n_kv_heads=3, ffn_dim=1536,
             rope_theta=1e5, norm_eps=1e-5, max_seq_len=1024)
FULL = dict(
    shape=SHAPE, batch=8, rounds=4, steps=2, blocks=(4, 512), loss=(4096, 151936, 1024),
    loss_rounds=2, entropy=32, prompts=32, new_tokens=256,
    growth=dict(T=(128, 256, 512, 1024), V=(12288, 24576, 49152, 98304), layers=(2, 4, 8, 16),
                batch=(2, 4, 8, 16)),
    loss_growth=dict(tokens=(1024, 2048, 4096, 8192), V=(16384, 32768, 65536, 131072)))
TINY = dict(vocab_size=256, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64,
            max_seq_len=1024)
QUICK = dict(
    shape=TINY, batch=4, rounds=2, steps=1, blocks=(2, 32), loss=(64, 2048, 32), loss_rounds=1,
    entropy=4, prompts=4, new_tokens=8, growth=dict(T=(16, 32), V=(128, 256)),
    loss_growth=dict(tokens=(32, 64), V=(512, 1024)))
QWEN = dict(vocab_size=151936, dim=1024, n_layers=28, n_heads=16, n_kv_heads=8, head_dim=128,
            ffn_dim=3072, rope_theta=1e6, qk_norm=True, max_seq_len=1024)
# ranks, --parallel, arm, passes of a step: whose peaks are measured beside the formulas' on a CPU
PLANNED = [(1, "ddp", "joint", 2), (2, "fsdp", "joint", 2), (2, "fsdp", "sft-steps", 1),
           (2, "ddp", "joint", 2)]
# dense bf16 FLOP/s of the data sheets, which MFU is a share of
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}

# ------------------------------------------------------------------------------------------------
# measuring


def clocks():
    """Now: (wall, CPU) seconds, all threads of this process together."""
    return time.perf_counter(), time.process_time()


def between(marks):
    """Readings of the clocks -> the (wall, CPU) seconds from each to the next."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]


def timed(act, *args):
    """-> the (wall, CPU) seconds of act(*args), what it returned"""
    before = clocks()
    result = act(*args)
    return between([before, clocks()]), result


def race(inputs, **sides):
    """Every side on every input, in turns -> ({name: times}, {name: results}), a list each, one
    entry for each input.

    A side is a function of the input that returns (list of (wall, CPU) seconds, its result). The
    order turns round from one input to the next: whoever goes second finds the machine warmer, or
    more tired.
    """
    times = {name: [] for name in sides}
    results = {name: [] for name in sides}
    order = list(sides)
    for given in inputs:
        for name in order:
            spent, result = sides[name](given)
            times[name].append(spent)
            results[name].append(result)
        order.reverse()
    return times, results


def same(what, a, b, rtol):
    """SystemExit unless a and b agree, relative to the largest value: else times say nothing."""
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    if a.shape != b.shape or not (a - b).abs().max() <= rtol * b.abs().max():
        raise SystemExit(f"bench: {what} differ, so their times say nothing: "
                         f"{a.flatten()[:4].tolist()} and {b.flatten()[:4].tolist()}")


def middle(rounds, clock=0):
    """Rounds of (wall, CPU) seconds -> the median of one of the clocks."""
    return median(t[clock] for spent in rounds for t in spent)


def entry(what, unit, peer_name, ours, peer, amount, goal, peer_amount=None, **more):
    """The record of one comparison. ours, peer: per round (wall, CPU) seconds of `amount` units."""
    share = (peer_amount or amount) / amount           # of the work that ours does
    spread = [middle([a]) / middle([b]) / share for a, b in zip(peer, ours, strict=True)]
    ratio, ratio_cpu = (middle(peer, k) / middle(ours, k) / share for k in (0, 1))
    rate = amount / middle(ours)
    return dict(what=what, ratio=ratio, ours=rate, peer=rate / ratio, peer_name=peer_name,
                unit=unit, spread=[min(spread), max(spread)], rounds=len(ours),
                ratio_cpu=ratio_cpu, goal=goal, **more)


def _answer(queue, act, args, threads):
    torch.set_num_threads(threads)
    queue.put(act(*args))


def apart(threads, act, *args, world=1):
    """act(*args) in fresh processes -> results in the order in which they come."""
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.SimpleQueue()
    processes = []
    for rank in range(world):
        env = dict(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                   LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                   MASTER_PORT=str(20000 + os.getpid() % 20000))
        with patch.dict(os.environ, env):
            process = spawn.Process(target=_answer, args=(queue, act, args, threads))
            process.start()
        processes.append(process)
    results = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return results


def memory(kind="VmHWM"):
    """Bytes of this process: VmHWM its peak so far (ru_maxrss has its parent's), VmRSS now."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(kind))


# ------------------------------------------------------------------------------------------------
# what is measured: models, ragged samples of GSM8K's lengths, our steps and a stock trainer's


def fresh(shape, seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**shape))


def gsm8k_like(shape, n=64):
    """n samples of random tokens with GSM8K's lengths, shuffled."""
    lengths = random.Random(0).sample(GSM8K_LENGTHS, len(GSM8K_LENGTHS))
    g = torch.Generator().manual_seed(0)
    samples = []
    for i, (p, c) in enumerate(lengths):
        tokens = torch.randint(shape["vocab_size"], (p + c,), generator=g)
        samples.append(Sample(i, "", tokens, torch.arange(p + c) >= p))
    return samples[:n]


def prompts_of(samples):
    return [s.tokens[:int((~s.loss).sum())].tolist() for s in samples]


def loss_tokens(samples):
    return sum(int(s.loss[1:].sum()) for s in samples)


def inputs_of(samples):
    """Tokens that a model reads of the samples."""
    return sum(len(s.tokens) - 1 for s in samples)


def batches_of(samples, n, size):
    """n batches of indices, in the order of the samples and from the start again."""
    return list((torch.arange(n * size) % len(samples)).view(n, size))


def rounds_of(samples, size):
    """Lists of 1 + size.steps batches, one per round; no sample returns before all were met."""
    n = size["steps"] + 1
    batches = batches_of(samples, size["rounds"] * n, size["batch"])
    return [batches[i:i + n] for i in range(0, len(batches), n)]


def per_step(samples, rounds):
    """Loss tokens of a step that is timed, which the first of a round is not."""
    timed = torch.cat([batch for batches in rounds for batch in batches[1:]])
    steps = sum(len(batches) - 1 for batches in rounds)
    return loss_tokens([samples[i] for i in timed.tolist()]) / steps


def spread_logits(model):
    """Random models' logits nearly tie and their entropies are all alike; this one's do not."""
    model.norm.weight.data.mul_(8)
    return model


def print_nothing(*words):
    pass


class Bench(Run):
    """A run without a folder; each of its log lines is a reading of the clocks."""

    def __init__(self, threads, **config):
        cfg = train_wmss.Config(**dict(threads=threads, log_every=1) | config)
        folder = Folder(cfg)
        folder.log, folder.say, folder.keep_log = self.read_clocks, print_nothing, print_nothing
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
        with patch.object(Watch, "begin", print_nothing):
            return train_wmss.train(self, "bench", model, samples, batches, lr, weak=weak,
                                    joint=arm != "frozen", control=control)


def pair_of(arm, shape):
    """The strong model, and the weak one of an arm that has one."""
    return fresh(shape), None if arm == "sft-steps" else fresh(shape, 1)


def our_steps(threads, samples, arm, models, batches):
    """Train in place -> (wall, CPU) seconds of all steps but the first; losses."""
    run = Bench(threads, batch_size=len(batches[0]))
    run.train(arm, *models, samples, batches)
    return between(run.marks), run.losses


def their_steps(model, loss_of, samples, batches, rows=None):
    """The same as a stock trainer does it: padded to the longest, `rows` samples at a time."""
    params = list(model.parameters())
    device = params[0].device.type
    opt = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    marks, losses = [], []
    for i, batch in enumerate(batches):
        opt.param_groups[0]["lr"] = train_wmss.lr_at(i, len(batches), 1e-4, 0.1)
        picked = [samples[j] for j in batch.tolist()]
        n, size, total = loss_tokens(picked), rows or len(picked), 0.0
        for k in range(0, len(picked), size):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = loss_of(model, picked[k:k + size], n)
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        losses.append(total)
        if device == "cuda" and i in (0, 2, len(batches) - 1):
            torch.cuda.synchronize()
        marks.append(clocks())
    return between(marks), [loss.item() for loss in losses]


# ------------------------------------------------------------------------------------------------
# transformers, a peer


def llama(model):
    """transformers' model (Llama, with q and k norms Qwen3) with our weights, no stop token."""
    try:
        import transformers
    except ImportError:
        raise LookupError("pip install -r tests/requirements.txt (transformers)") from None
    c = model.cfg
    kind = "Qwen3" if c.qk_norm else "Llama"
    cfg = getattr(transformers, kind + "Config")(
        vocab_size=c.vocab_size, hidden_size=c.dim, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim,
        intermediate_size=c.ffn_dim, rms_norm_eps=c.norm_eps, max_position_embeddings=c.max_seq_len,
        tie_word_embeddings=c.tie_embeddings, attn_implementation="sdpa",
        rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta), bos_token_id=None,
        eos_token_id=None)
    peer = getattr(transformers, kind + "ForCausalLM")(cfg)
    weights = {}
    for name, value in model.state_dict().items():
        weights[name if name.startswith("lm_head") else "model." + name] = value
    peer.load_state_dict(weights)
    peer.generation_config.eos_token_id = peer.generation_config.pad_token_id = None
    return peer


def generate_like_transformers(peer, n, prompts):
    """n new tokens for each prompt, left-padded, with transformers."""
    longest = max(map(len, prompts))
    x = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=peer.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts],
                        device=peer.device)
    tokens = peer.generate(x, attention_mask=mask, max_new_tokens=n, do_sample=False,
                           pad_token_id=0)
    return tokens[:, longest:].tolist()


def padded_loss(model, rows, n):
    """transformers' own loss over n tokens; labels are -100 where nothing is to be learned."""
    x = pad_sequence([s.tokens for s in rows], batch_first=True)
    labels = pad_sequence([s.tokens.masked_fill(~s.loss, -100) for s in rows], batch_first=True,
                          padding_value=-100)
    attention = pad_sequence([torch.ones_like(s.tokens) for s in rows], batch_first=True)
    x, labels, attention = (t.to(model.device) for t in (x, labels, attention))
    return model(input_ids=x, attention_mask=attention, use_cache=False, labels=labels,
                 num_items_in_batch=n).loss


# ------------------------------------------------------------------------------------------------
# the parts


def p1(size, args):
    """SFT on ragged text against a stock trainer: random padded batches, transformers' model."""
    model, samples = fresh(size["shape"]), gsm8k_like(size["shape"])
    rounds = rounds_of(samples, size)
    times, losses = race(rounds, ours=partial(our_steps, args.threads, samples, "sft-steps",
                                              (model, None)),
                         peer=partial(their_steps, llama(model), padded_loss, samples))
    same("the losses of the two trainings", losses["ours"], losses["peer"], 2e-4)
    return dict(P1=entry("SFT on GSM8K's lengths", "loss tokens/s",
                         "transformers' model in random padded batches", times["ours"],
                         times["peer"], per_step(samples, rounds), 2.0))


def p1b(size, args):
    """The same trainer on full blocks against nanoGPT's model of the same parameter count."""
    if not args.nanogpt:
        raise LookupError("pass --nanogpt PATH/model.py "
                          "(git clone https://github.com/karpathy/nanoGPT)")
    spec = importlib.util.spec_from_file_location("nanogpt", args.nanogpt)
    nano = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = nano
    spec.loader.exec_module(nano)
    B, T = size["blocks"]
    ffn = size["shape"]["dim"] * 8 // 3                          # 12 C^2 a layer, as GPT-2 has
    model = fresh({**size["shape"], "n_kv_heads": None, "ffn_dim": ffn})
    c = model.cfg
    torch.manual_seed(0)
    with redirect_stdout(None):
        peer = nano.GPT(nano.GPTConfig(
            block_size=T, vocab_size=c.vocab_size, n_layer=c.n_layers, n_head=c.n_heads,
            n_embd=c.dim, dropout=0.0, bias=False))
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, peer))
    same("the numbers of parameters", ours, theirs - T * c.dim, 0.01)      # no position embeddings
    blocks = torch.randint(c.vocab_size, (4 * B, T + 1), generator=torch.Generator().manual_seed(0))
    everything = torch.ones(T + 1, dtype=torch.bool)
    samples = [Sample(i, "", block, everything) for i, block in enumerate(blocks)]

    def block_loss(m, rows, n):
        x = torch.stack([s.tokens for s in rows])
        return m(x[:, :-1].contiguous(), x[:, 1:].contiguous())[1]

    times, _ = race(rounds_of(samples, {**size, "batch": B}),
                    ours=partial(our_steps, args.threads, samples, "sft-steps", (model, None)),
                    peer=partial(their_steps, peer, block_loss, samples))
    return dict(P1b=entry(f"full blocks of {T}", "tokens/s", "nanoGPT's model of equal size",
                          times["ours"], times["peer"], B * T, 1.1))


def p2(size, args):
    """A step of joint and of frozen training over one of SFT, the same batches, all mixed."""
    samples = gsm8k_like(size["shape"])
    sides = {arm: partial(our_steps, args.threads, samples, arm, pair_of(arm, size["shape"]))
             for arm in ("sft-steps", "joint", "frozen")}
    times, _ = race(rounds_of(samples, size), **sides)
    found = {}
    for arm, goal in (("joint", 1.9), ("frozen", 1.33)):
        found[f"P2{arm}"] = entry(f"cost of a {arm} step in steps of SFT", "steps/s",
                                  f"SFT against {arm}", times["sft-steps"], times[arm], 1,
                                  f"at most {goal}")
    return found


def naive_mixed_loss(branches, y):
    """The official loss, restated: both models' full logits stacked, fused, upcast."""
    (lam, h_s, w_s), (_, h_w, w_w) = branches
    z = torch.stack([h_s @ w_s.T, h_w @ w_w.T])
    return F.cross_entropy((lam * z[0] + (1 - lam) * z[1]).float(), y, reduction="sum")


def loss_once(loss_of, rows, vocab, width, rounds=1):
    """Forward and backward of the mixed loss -> times, and a dict: peak bytes beyond what was there
    before, the part of it that the gradients handed to the caller take, samples of loss and
    gradients."""
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
    spread = [n / o for o, n in zip(ours, naive, strict=True)]
    ours, naive = median(ours), median(naive)
    wall, cpu = (middle(times["ours"], k) / middle(times["naive"], k) for k in (0, 1))
    return dict(P3=dict(
        what=f"peak of the mixed loss, {rows:,} tokens, V {vocab:,}, width {width:,}",
        ratio=naive / ours, ours=ours / 1e9, peer=naive / 1e9, unit="GB",
        peer_name="both full logits stacked, fused, upcast", spread=[min(spread), max(spread)],
        rounds=size["loss_rounds"], goal=8.0, time_over_naive=wall, time_over_naive_cpu=cpu,
        of_which_gradients_gb=a["grads"] / 1e9,
        ratio_beyond_gradients=(naive - a["grads"]) / max(1, ours - a["grads"])))


@torch.no_grad()
def naive_entropy(model, samples):
    """The official entropy pass, restated: batch 1, all logits, fp32, log(p + eps)."""
    out = []
    for s in samples:
        p = torch.softmax(model.logits(s.tokens[None, :-1])[0].float(), dim=-1)        # (T, V)
        ent = -(p * torch.log(p + 1e-12)).sum(-1)
        out.append(ent[s.loss[1:]])      # where tokens are predicted: the official is off by one
    return torch.cat(out)


def p4(size, args):
    """Entropies of two models against batch 1, and against trunk and one matmul."""
    samples = gsm8k_like(size["shape"], size["entropy"])
    weak, live = (spread_logits(fresh(size["shape"], seed)) for seed in (0, 1))
    chunk, rows = chunk_of(size["shape"]["vocab_size"]), train_wmss.Config.micro_batch

    def ours(some):
        return timed(measure, weak, live, some, rows)

    def batch_one(some):
        return timed(lambda: [naive_entropy(m, some) for m in (weak, live)])

    @torch.no_grad()
    def heads(some):                         # the logits are computed and dropped
        for b in micro_batches(some, rows):
            for m in (weak, live):
                for h in m(b.x)[b.loss_mask].split(chunk):
                    m.lm_head(h)

    ours(samples[:2])                                            # warm
    times, found = race([samples] * size["rounds"], ours=ours, naive=batch_one,
                        roof=partial(timed, heads))
    for name, want in zip(("ent_weak", "ent_live"), found["naive"][0], strict=True):
        same("the entropies", getattr(found["ours"][0], name), want, 1e-4)
    tokens = 2 * inputs_of(samples)                              # of both models
    return dict(P4=entry("entropies of two models", "tokens/s", "batch 1, full fp32 probabilities",
                         times["ours"], times["naive"], tokens, 5.0),
                P4roof=entry("the same against its roof", "tokens/s",
                             "trunk's forward and one head matmul", times["ours"], times["roof"],
                             tokens, 0.85))


@torch.no_grad()
def generate_uncached(model, n, prompt):
    """Generation as nanoGPT has it: the whole sequence through the trunk again for every token."""
    x = torch.tensor([prompt])
    for _ in range(n):
        x = torch.cat([x, model.lm_head(model(x)[:, -1:]).argmax(-1)], 1)
    return x[0, len(prompt):].tolist()


def p5(size, args):
    """Greedy generation from prompts of GSM8K's lengths, as many tokens for every row."""
    n, prompts = size["new_tokens"], prompts_of(gsm8k_like(size["shape"], size["prompts"]))
    model = spread_logits(fresh(size["shape"]).eval())
    peer = llama(model).eval()
    model.generate(prompts[:2], 2)                               # warm
    times, found = race([prompts] * size["rounds"],
                        ours=partial(timed, partial(model.generate, max_new_tokens=n)),
                        peer=partial(timed, partial(generate_like_transformers, peer, n)))
    one = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))[len(prompts) // 2]
    spent, tokens = timed(generate_uncached, model, n, prompts[one])       # the median prompt
    same("the tokens", found["ours"][0][one], tokens, 0)
    same("the tokens", found["ours"][0], found["peer"][0], 0)
    return dict(P5=entry(f"greedy, {len(prompts)} prompts, {n} new tokens", "new tokens/s",
                         "no cache, one prompt alone", times["ours"], [spent] * size["rounds"],
                         n * len(prompts), 10.0, peer_amount=n),
                P5hf=entry("the same", "new tokens/s", "transformers' generate(), padded left",
                           times["ours"], times["peer"], n * len(prompts), 1.3))


def step_of_rank(shape, batch, steps, sync):
    """As the rank that the environment names -> rank, (times, losses)."""
    if not sync:                     # no gradient is exchanged: what these cores can do at best
        Ranks.data_parallel = lambda ranks, module: module
    samples = gsm8k_like(shape)
    return int(os.environ["RANK"]), our_steps(1, samples, "sft-steps", (fresh(shape), None),
                                              batches_of(samples, steps + 1, batch))


def p7(size, args):
    """A step of one batch on one rank and on two; beside it two ranks that exchange nothing."""
    def side(world, sync):
        return lambda _: min(apart(1, step_of_rank, size["shape"], 2 * size["batch"],
                                   size["steps"], sync, world=world))[1]

    times, losses = race(range(max(2, size["rounds"] // 2)), one=side(1, True), two=side(2, True),
                         alone=side(2, False))
    same("the losses of one rank and two", losses["one"][0], losses["two"][0], 1e-4)
    return dict(P7=entry("step on two gloo ranks, one thread each", "steps/s",
                         "one rank, one thread (ideal: 2)", times["two"], times["one"], 1, 1.7,
                         without_exchange=middle(times["one"]) / middle(times["alone"])))


# ------------------------------------------------------------------------------------------------
# views: how cost grows


def row(name, *cells):
    """A line of a view's table."""
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


def loss_point(tokens, V):
    """(seconds, peak bytes beyond inputs and gradients) of the mixed loss, forward + backward."""
    times, found = loss_once(linear_cross_entropy, tokens, V, 64, 3)
    return middle([times]), found["peak"] - found["grads"]


def scaling(size, args):
    """Forward + backward of a step and of the loss, one dimension changed at a time."""
    steps = dict(T=size["blocks"][1] // 2, V=size["shape"]["vocab_size"],
                 layers=size["shape"]["n_layers"], batch=4)
    loss = {name: values[-2] for name, values in size["loss_growth"].items()}
    record = {}
    for what, act, base, growth in (
            ("step", partial(step_point, size["shape"]), steps, size["growth"]),
            ("mixed loss, width 64", loss_point, loss, size["loss_growth"])):
        row(what, *base, "seconds", "GB")
        record[what] = []
        for name, values in growth.items():
            for value in values:
                point = {**base, name: value}
                ((seconds, peak),) = apart(args.threads, act, *point.values())
                record[what].append(dict(point, seconds=seconds, gb=peak / 1e9))
                where = [f"{v:,}" for v in point.values()]
                row(name, *where, f"{seconds:.3f}", f"{peak / 1e9:.2f}")
    return {"scaling": record}


def footprint(shape, ranks, parallel, arm, passes, samples):
    """Two steps as the rank that the environment names -> bytes that they took at their peak."""
    for s in (TINY, shape):                     # first for what libraries and threads take
        before = memory("VmRSS")
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")                        # the peak starts again from here
        run = Bench(1, batch_size=ranks * samples, micro_batch=samples // passes,
                    parallel=parallel, chunk_rows=128)
        run.train(arm, *pair_of(arm, s), gsm8k_like(s), batches_of(gsm8k_like(s), 2,
                                                                   ranks * samples))
    return memory() - before


def plan(size, args):
    """Memory of a GPU, from formulas; and the formulas beside peaks measured on this CPU."""
    print(table())
    shape, n = {**size["shape"], "n_layers": 2}, size["batch"] // 2
    samples, record = gsm8k_like(shape), {}
    row("measured on the CPU", "formula GB", "peak GB", "ratio")
    for case in PLANNED[:2] if args.quick else PLANNED:
        ranks, parallel, arm, passes = case
        tokens = []                             # of each pass of each rank
        for step in batches_of(samples, 2, ranks * n):
            rows = [samples[i] for i in step.tolist()]
            for rank in range(ranks):
                tokens += [len(b.y) for b in micro_batches(rows, n // passes, rank, ranks)]
        want = peak(GPTConfig(**shape), arm, parallel, ranks, passes, tokens=max(tokens),
                    kind="fp32", chunk_rows=128)
        with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="1000000"):      # freed is given back
            got = max(apart(1, footprint, shape, *case, n, world=ranks))
        name = f"{arm}, {ranks} x {parallel}, passes {passes}"
        record[name] = dict(formula=want / 1e9, peak=got / 1e9, ratio=want / got)
        row(name, *(f"{value:.3f}" for value in record[name].values()))
    return {"plan": record}


# ------------------------------------------------------------------------------------------------
# on a GPU, bf16


def need_gpu(args):
    """The device; LookupError where it is no GPU, but for --quick."""
    if not torch.cuda.is_available() and not args.quick:
        raise LookupError("no GPU here")
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_steps(shape, samples, batch, steps, tokens_per_batch, compiled, arm):
    """Train through train() on the device of the run -> dict: seconds per step (those of the first
    steps left out, torch.compile's with them), FLOP/s, seconds until the first step's end, loss."""
    run = Bench(0, batch_size=batch, micro_batch=batch, tokens_per_batch=tokens_per_batch,
                compile=compiled, log_every=max(1, steps // 4))
    models = pair_of(arm, shape)
    torch.compiler.reset()
    start = time.perf_counter()
    state = run.train(arm, *models, samples, batches_of(samples, steps, batch), lr=1e-5)
    span, n = run.marks[-1][0] - run.marks[1][0], run.steps[-1] - run.steps[1]
    return dict(seconds=span / n, flops=state["flops"] / steps * n / span,
                first=run.marks[0][0] - start, loss=run.losses[0])


def gpu_peer_steps(shape, samples, batch, steps, device):
    """The same steps with transformers' model under bf16 autocast, padded, a quarter at a time."""
    model = llama(fresh(shape)).to(device)
    times, losses = their_steps(model, padded_loss, samples, batches_of(samples, steps, batch),
                                batch // 4)
    return dict(seconds=fmean(wall for wall, _ in times[2:]), flops=math.nan, first=math.nan,
                loss=losses[0])


def gpu(size, args):
    """MFU of SFT and joint steps, compiled or not, beside transformers."""
    device = need_gpu(args)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((v for k, v in PEAK.items() if k in card), math.nan)
    both, every = ("sft-steps", "joint"), ("sft-steps", "joint", "frozen", "permuted")
    shapes = {"SmolLM2-135M": ({**SHAPE, "n_layers": 30}, 40, {False: every, True: both}),
              "Qwen3-0.6B": (QWEN, 20, {False: both, True: both})}
    batch, tokens_per_batch = 64, 16384
    if args.quick:
        shapes, batch, tokens_per_batch = {"toy": (TINY, 20, {False: every})}, 4, 64
    print(f"{card}: training on GSM8K's lengths, {batch} samples a step, bf16 autocast, fp32 "
          f"weights; MFU of {peak / 1e12:.0f} TFLOP/s")
    row("", "s/step", "tok/s", "MFU", "GB", "first step, s")
    record = dict(card=card)
    for shape_name, (shape, steps, arms_of) in shapes.items():
        samples = gsm8k_like(shape)
        sides = {}
        for compiled, arms in arms_of.items():
            for arm in arms:
                n = steps // 4 if arm == "permuted" else steps   # slow, and no goal
                sides[f"{arm}, compiled" if compiled else arm] = partial(
                    gpu_steps, shape, samples, batch, n, tokens_per_batch, compiled, arm)
        sides["sft-steps, transformers"] = partial(gpu_peer_steps, shape, samples, batch, steps,
                                                   device)
        for what, act in sides.items():
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                r = act()
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
    shape, n, times = (TINY, 8, 1) if args.quick else ({**SHAPE, "n_layers": 30}, 256, 4)
    model = fresh(shape).to(device).eval()
    prompts = prompts_of(gsm8k_like(shape) * times)
    peer = llama(fresh(shape)).eval().to(device)
    if device == "cuda":
        peer = peer.bfloat16()

    def ours(graphs):
        with (patch.object(Decoder, "graphs", graphs),
              torch.autocast(device, torch.bfloat16, enabled=device == "cuda")):
            model.generate(prompts, n)

    sides = {"CUDA graphs": partial(ours, True), "no graphs": partial(ours, False),
             "transformers generate": partial(generate_like_transformers, peer, n, prompts)}
    row(f"greedy, {len(prompts)} prompts, {n} new tokens", "seconds", "tok/s")
    for what, act in sides.items():
        act()
        low, seconds, high = sorted(timed(act)[0][0][0] for _ in range(3))
        tokens = len(prompts) * n / seconds
        record[what] = dict(seconds=seconds, tokens=tokens, spread=[low, high])
        row(what, f"{seconds:.2f}", f"{tokens:,.0f}")
    return {"gpu-generate": record}


# ------------------------------------------------------------------------------------------------
# command line

PARTS = dict(P1=p1, P1b=p1b, P2=p2, P3=p3, P4=p4, P5=p5, P7=p7)
VIEWS = {"plan": plan, "scaling": scaling, "gpu": gpu, "gpu-generate": gpu_generate}
MORE = ("time_over_naive", "time_over_naive_cpu", "of_which_gradients_gb",
        "ratio_beyond_gradients", "without_exchange")


def show(record):
    for part, r in record.items():
        if "not_measured" in r:
            print(f"{part:10s}not measured: {r['not_measured']}", flush=True)
        elif "ratio" in r:
            words = [f"goal {r['goal']}", *(f"{k.replace('_', ' ')} {r[k]:.2f}"
                                            for k in MORE if k in r)]
            if "ratio_cpu" in r:
                words.insert(0, f"CPU {r['ratio_cpu']:.2f}")
            print(f"{part:10s}{r['what']}: {r['ours']:,.4g} against {r['peer']:,.4g} {r['unit']}, "
                  f"{r['peer_name']}: {r['ratio']:.2f}x ({r['spread'][0]:.2f}-"
                  f"{r['spread'][1]:.2f}), {', '.join(words)}", flush=True)


def main(argv=None):
    parser = parser_of(__doc__)
    flag = parser.add_argument
    flag("parts", nargs="*", metavar="PART",
         help=f"{' '.join(PARTS)} (the default: all of these), {' '.join(VIEWS)}")
    flag("--json", metavar="FILE", help="write the numbers there")
    flag("--threads", type=int, default=len(os.sched_getaffinity(0)),
         help="CPU threads [all cores]; P7 always gives each rank one")
    flag("--nanogpt", metavar="PATH", help="nanoGPT's model.py, the peer of P1b")
    flag("--quick", action="store_true", help="toy sizes: does every part run?")
    args = parser.parse_args(argv)
    unknown = [p for p in args.parts if p not in PARTS | VIEWS]
    if unknown:
        raise SystemExit(f"bench: unknown part {', '.join(unknown)}; expected some of "
                         f"{', '.join(PARTS | VIEWS)}")
    torch.set_num_threads(args.threads)
    head = dict(commit=commit(), torch=torch.__version__, python=platform.python_version(),
                cpu=cpu_name(), threads=args.threads, load=os.getloadavg()[0],
                size="quick" if args.quick else "full")
    print("bench | " + " | ".join(f"{k} {v}" for k, v in head.items()), flush=True)
    results = {"run": head}
    for part in args.parts or PARTS:
        try:
            record = (PARTS | VIEWS)[part](QUICK if args.quick else FULL, args)
        except LookupError as missing:                           # a peer that is not there
            record = {part: dict(not_measured=missing.args[0])}
        show(record)
        results.update(record)
        if args.json:
            write_text(args.json, json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
