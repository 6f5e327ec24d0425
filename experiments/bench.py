"""Speed and memory of each part beside its naive form and its public peers, in one run: both sides
take turns (A B A B ...).

    python experiments/bench.py                      # every part; long on two cores
    python experiments/bench.py P3 P4 --json bench.json      # some; the numbers go to a file too
    python experiments/bench.py P1b --nanogpt ../nanoGPT/model.py    # github.com/karpathy/nanoGPT
    python experiments/bench.py scaling              # step and loss against T, V, layers, batch
    python experiments/bench.py profile              # where the seconds go, ours and the peers'
    python experiments/bench.py gpu gpu-generate gpu-profile     # on a GPU, beside transformers
    python experiments/bench.py --quick              # toy size, to see it run; numbers mean nothing

A ratio above 1 means that ours is better; P2 is seconds per step over those of SFT, lower is
better. Before anything is timed, both sides must have computed the same thing: the same losses,
entropies, tokens. Wall-clock times; the ratio of CPU seconds stands beside that of the wall clock,
since a neighbour on the same cores distorts it less (one thread: hardly at all).

Shapes: B batch, T time, C width, V vocabulary, N rows (tokens) with a loss.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from statistics import median
from unittest.mock import patch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import train_wmss  # first: it sets what torch reads from the environment

# isort: split
import torch
import torch.nn.functional as F
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

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

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
    loss_rounds=2, entropy=32, prompts=32, new_tokens=256, naive_prompts=1, job=[],
    growth=dict(T=(128, 256, 512, 1024), V=(12288, 24576, 49152, 98304), layers=(2, 4, 8, 16),
                batch=(2, 4, 8, 16)),
    loss_growth=dict(tokens=(1024, 2048, 4096, 8192), V=(16384, 32768, 65536, 131072)))
TINY = dict(vocab_size=256, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64,
            max_seq_len=1024)
QUICK = dict(
    shape=TINY, batch=4, rounds=2, steps=1, blocks=(2, 32), loss=(64, 2048, 32), loss_rounds=1,
    entropy=4, prompts=4, new_tokens=8, naive_prompts=1, job=["--preset", "smoke"],
    growth=dict(T=(16, 32), V=(128, 256)), loss_growth=dict(tokens=(32, 64), V=(512, 1024)))
QWEN = dict(vocab_size=151936, dim=1024, n_layers=28, n_heads=16, n_kv_heads=8, head_dim=128,
            ffn_dim=3072, rope_theta=1e6, qk_norm=True, max_seq_len=1024)
# dense bf16 FLOP/s of the data sheets, which MFU is a share of
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}

# ------------------------------------------------------------------------------------------------
# our training, as train_wmss.py offers it (to be adapted when it changes; nothing else here knows)


def clocks():
    return time.perf_counter(), time.process_time()


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

    def train(self, model, samples, batches, lr, weak_model=None, arm="joint"):
        """train_wmss.train(), which logs often here, for the clocks. What a logged step tells of
        its tokens, which no peer tells and training at one step in 50, is left out."""
        control = None
        if weak_model is not None and ARMS[arm].control is not None:
            control = ARMS[arm].control(self.cfg)
        with patch.object(Watch, "begin", print_nothing):
            return train_wmss.train(self, "bench", model, samples, batches, lr, weak=weak_model,
                                    joint=arm != "frozen", control=control)


def print_nothing(*words):
    pass


def stop_exchanging():
    """From now on ranks exchange no gradients: what these cores can do, whatever that costs."""
    Ranks.data_parallel = lambda ranks, module: module


# ------------------------------------------------------------------------------------------------
# measuring


def spent_since(before):
    return tuple(b - a for a, b in zip(before, clocks(), strict=True))


def timed(act):
    """act() -> its (wall, CPU) seconds, all threads of this process together."""
    before = clocks()
    act()
    return spent_since(before)


def between(marks):
    """Readings of the clocks -> the (wall, CPU) seconds from each to the next."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]


def take_turns(rounds, *sides):
    """Run the sides one after the other, rounds times; each returns its list of (wall, CPU) seconds
    -> one list of all per side.

    The order turns round from one round to the next: whoever goes second finds the machine warmer,
    or more tired.
    """
    times = [[] for _ in sides]
    for r in range(rounds):
        for i in list(range(len(sides)))[::1 if r % 2 == 0 else -1]:
            times[i].append(sides[i]())
    return times


def timed_turns(rounds, *acts):
    """take_turns() of plain functions."""
    def side(act):
        return lambda: [timed(act)]

    return take_turns(rounds, *map(side, acts))


def same(what, a, b, rtol):
    """SystemExit unless a and b agree, relative to the largest value: else times say nothing."""
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    if a.shape != b.shape or not (a - b).abs().max() <= rtol * b.abs().max():
        raise SystemExit(f"bench: {what} differ, so their times say nothing: "
                         f"{a.flatten()[:4].tolist()} and {b.flatten()[:4].tolist()}")


def middle(rounds, clock=0):
    """Rounds of (wall, CPU) seconds -> the median of one of the clocks."""
    return median(t[clock] for r in rounds for t in r)


def ratios(slower, faster):
    """Ratio of the medians of each round, in order."""
    return sorted(middle([a]) / middle([b]) for a, b in zip(slower, faster, strict=True))


def divided(rounds, amount):
    return [[(t[0] / amount, t[1] / amount) for t in r] for r in rounds]


def entry(part, what, unit, peer_name, ours, peer, amount, goal, **more):
    """The record of one comparison. ours, peer: per round (wall, CPU) seconds of `amount` units."""
    spread = ratios(peer, ours)
    return {part: dict(
        what=what, ratio=middle(peer) / middle(ours), ours=amount / middle(ours),
        peer=amount / middle(peer), peer_name=peer_name, unit=unit, spread=[spread[0], spread[-1]],
        rounds=len(ours), ratio_cpu=middle(peer, 1) / middle(ours, 1), goal=goal, **more)}


def _answer(queue, act, args):
    torch.set_num_threads(args[-1])
    queue.put(act(*args))


def apart(act, *args, world=1):
    """act(*args) in fresh processes -> results by rank. The last argument: threads of each."""
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.SimpleQueue()
    port = str(20000 + os.getpid() % 20000)
    processes = []
    for rank in range(world):
        env = dict(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank),
                   LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        with patch.dict(os.environ, env):
            process = spawn.Process(target=_answer, args=(queue, act, args))
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


def gsm8k_like(vocab_size, seed=0):
    """64 samples of random tokens with GSM8K's lengths, shuffled."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    samples = []
    for i, (p, c) in enumerate(rng.sample(GSM8K_LENGTHS, len(GSM8K_LENGTHS))):
        tokens = torch.randint(vocab_size, (p + c,), generator=g)
        samples.append(Sample(i, "", tokens, torch.arange(p + c) >= p))
    return samples


def prompts_of(samples):
    return [s.tokens[:int((~s.loss).sum())].tolist() for s in samples]


def loss_tokens(samples):
    return sum(int(s.loss[1:].sum()) for s in samples)


def inputs_of(samples):
    """Tokens that a model reads of the samples."""
    return sum(len(s.tokens) - 1 for s in samples)


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


def generate_like_transformers(peer, prompts, n, device="cpu"):
    """-> a function that generates n tokens for each prompt, left-padded, with transformers."""
    longest = max(map(len, prompts))
    x = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)

    def act():
        tokens = peer.generate(x, attention_mask=mask, max_new_tokens=n, do_sample=False,
                               pad_token_id=0)
        return tokens[:, longest:].tolist()

    return act


def padded_loss(model, rows, n):
    """transformers' own loss over n tokens; labels are -100 where nothing is to be learned."""
    device = next(model.parameters()).device
    x = pad_sequence([s.tokens for s in rows], batch_first=True)
    labels = pad_sequence([s.tokens.masked_fill(~s.loss, -100) for s in rows], batch_first=True,
                          padding_value=-100)
    attention = pad_sequence([torch.ones_like(s.tokens) for s in rows], batch_first=True)
    return model(input_ids=x.to(device), attention_mask=attention.to(device), use_cache=False,
                 labels=labels.to(device), num_items_in_batch=n).loss


def our_steps(threads, model, samples, batches, weak_model=None, arm="joint"):
    """Train in place -> (wall, CPU) seconds of all steps but the first; losses."""
    run = Bench(threads, batch_size=len(batches[0]))
    run.train(model, samples, batches, 1e-4, weak_model, arm)
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


def rounds_of(samples, size):
    """Lists of 1 + size.steps batches, one per round; no sample returns before all were met."""
    steps = size["steps"] + 1
    order = torch.arange(size["rounds"] * steps * size["batch"]) % len(samples)
    return order.view(size["rounds"], steps, size["batch"])


def training_pair(size, threads, model, samples, loss_of, peer, rtol=None):
    """Our training and a peer's, turn by turn -> (wall, CPU) seconds per loss token of both."""
    batches = rounds_of(samples, size)
    losses = dict(ours=[], peer=[])

    def side(name, steps):
        left = iter(batches)

        def turn():
            these = list(next(left))
            times, found = steps(these)
            losses[name] += found
            per_token = []
            for t, batch in zip(times, these[1:], strict=True):
                per_token += divided([[t]], loss_tokens([samples[i] for i in batch.tolist()]))[0]
            return per_token

        return turn

    times = take_turns(size["rounds"],
                       side("ours", lambda b: our_steps(threads, model, samples, b)),
                       side("peer", lambda b: their_steps(peer, loss_of, samples, b)))
    if rtol:
        same("the losses of the two trainings", losses["ours"], losses["peer"], rtol)
    return times


# ------------------------------------------------------------------------------------------------
# the parts


def p1(size, args):
    """SFT on ragged text against a stock trainer: random padded batches, transformers' model."""
    model, samples = fresh(size["shape"]), gsm8k_like(size["shape"]["vocab_size"])
    ours, peer = training_pair(size, args.threads, model, samples, padded_loss, llama(model), 2e-4)
    return entry("P1", "SFT on GSM8K's lengths", "loss tokens/s",
                 "transformers' model in random padded batches", ours, peer, 1, 2.0)


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
    g = torch.Generator().manual_seed(0)
    samples = []
    for i in range(4 * B):
        tokens = torch.randint(c.vocab_size, (T + 1,), generator=g)
        samples.append(Sample(i, "", tokens, torch.ones(T + 1, dtype=torch.bool)))

    def block_loss(m, rows, n):
        x = torch.stack([s.tokens for s in rows])
        return m(x[:, :-1].contiguous(), x[:, 1:].contiguous())[1]

    ours, theirs = training_pair({**size, "batch": B}, args.threads, model, samples, block_loss,
                                 peer)
    return entry("P1b", f"training on full blocks of {T}", "tokens/s",
                 "nanoGPT's model of equal size", ours, theirs, 1, 1.1)


def p2(size, args):
    """A step of joint and of frozen training over one of SFT, the same batches, all mixed."""
    samples = gsm8k_like(size["shape"]["vocab_size"])
    batches = rounds_of(samples, size)

    def side(arm):
        strong, left = fresh(size["shape"]), iter(batches)
        weak = None if arm == "sft" else fresh(size["shape"], 1)
        return lambda: our_steps(args.threads, strong, samples, list(next(left)), weak, arm)[0]

    arms = ("sft", "joint", "frozen")
    times = dict(zip(arms, take_turns(size["rounds"], *map(side, arms)), strict=True))
    record = dict(what="seconds per step over those of SFT", unit="s/step", rounds=size["rounds"],
                  goal=[1.9, 1.33], sft=middle(times["sft"]))
    for arm in arms[1:]:
        spread = ratios(times[arm], times["sft"])
        record[arm] = middle(times[arm])
        record[f"{arm}_over_sft"] = middle(times[arm]) / middle(times["sft"])
        record[f"{arm}_over_sft_cpu"] = middle(times[arm], 1) / middle(times["sft"], 1)
        record[f"{arm}_spread"] = [spread[0], spread[-1]]
    return {"P2": record}


def naive_mixed_loss(h_s, w_s, h_w, w_w, y, lam):
    """The official loss, restated: both models' full logits stacked, fused, upcast."""
    z = torch.stack([h_s @ w_s.T, h_w @ w_w.T])
    return F.cross_entropy((lam * z[0] + (1 - lam) * z[1]).float(), y, reduction="sum")


def loss_once(name, rows, vocab, width, rounds, threads):
    """Forward and backward of the mixed loss, in a process of its own -> peak bytes beyond what was
    there before, the part of it that the gradients handed to the caller take, times, and samples of
    loss and gradients."""
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
        if name == "ours":
            loss = linear_cross_entropy([(0.5, h_s, w_s), (0.5, h_w, w_w)], y)
        else:
            loss = naive_mixed_loss(h_s, w_s, h_w, w_w, y, 0.5)
        loss.backward()
        times.append(spent_since(start))
    grads = (h_s.grad, w_s.grad, h_w.grad, w_w.grad)
    return dict(peak=memory() - before, grads=sum(t.numel() * 4 for t in grads), times=times,
                loss=loss.item(), probe=[t[:64].double().norm().item() for t in grads])


def p3(size, args):
    """Peak memory of the mixed loss beyond hidden states and weights, in fresh processes."""
    rows, vocab, width = size["loss"]
    got = dict(ours=[], naive=[])
    for r in range(size["loss_rounds"]):
        for name in ("ours", "naive")[::1 if r % 2 == 0 else -1]:
            got[name] += apart(loss_once, name, rows, vocab, width, 1, args.threads)
    a, b = got["ours"][0], got["naive"][0]
    same("the losses", a["loss"], b["loss"], 1e-5)
    same("the gradients", a["probe"], b["probe"], 1e-4)
    ours, naive = (median(x["peak"] for x in got[name]) for name in ("ours", "naive"))
    spread = sorted(n["peak"] / o["peak"] for o, n in zip(got["ours"], got["naive"], strict=True))
    wall, cpu = (middle([x["times"] for x in got["ours"]], clock) /
                 middle([x["times"] for x in got["naive"]], clock) for clock in (0, 1))
    return {"P3": dict(
        what=f"peak of the mixed loss, {rows:,} tokens, V {vocab:,}, width {width:,}",
        ratio=naive / ours, ours=ours / 1e9, peer=naive / 1e9, unit="GB",
        peer_name="both full logits stacked, fused, upcast", spread=[spread[0], spread[-1]],
        rounds=size["loss_rounds"], goal=8.0, time_over_naive=wall, time_over_naive_cpu=cpu,
        of_which_gradients_gb=a["grads"] / 1e9,
        ratio_beyond_gradients=(naive - a["grads"]) / max(1, ours - a["grads"]))}


@torch.no_grad()
def naive_entropy(model, samples):
    """The official entropy pass, restated: batch 1, all logits, fp32, log(p + eps)."""
    out = []
    for s in samples:
        p = torch.softmax(model.logits(s.tokens[None, :-1])[0].float(), dim=-1)        # (T, V)
        ent = -(p * torch.log(p + 1e-12)).sum(-1)
        out.append(ent[s.loss[1:]])      # where tokens are predicted: the official is off by one
    return torch.cat(out)


def spread_logits(*models):
    """Random models' logits nearly tie and their entropies are all alike; these are not."""
    for model in models:
        model.norm.weight.data.mul_(8)


def p4(size, args):
    """Entropies of two models against batch 1, and against trunk and one matmul."""
    samples = gsm8k_like(size["shape"]["vocab_size"])[:size["entropy"]]
    weak, live = fresh(size["shape"]), fresh(size["shape"], 1)
    spread_logits(weak, live)
    chunk, rows, found = chunk_of(size["shape"]["vocab_size"]), train_wmss.Config.micro_batch, {}

    def ours():
        found["ours"] = measure(weak, live, samples, rows, chunk_rows=chunk)

    def batch_one():
        found["naive"] = [naive_entropy(m, samples) for m in (weak, live)]

    @torch.no_grad()
    def roof():                              # the logits are computed and dropped
        for b in micro_batches(samples, rows):
            for m in (weak, live):
                for h in m(b.x)[b.loss_mask].split(chunk):
                    m.lm_head(h)

    measure(weak, live, samples[:2], chunk_rows=chunk)           # warm
    times = timed_turns(size["rounds"], ours, batch_one, roof)
    for name, want in zip(("ent_weak", "ent_live"), found["naive"], strict=True):
        same("the entropies", getattr(found["ours"], name), want, 1e-4)
    tokens = 2 * inputs_of(samples)                              # of both models
    return {**entry("P4", "entropies of two models", "tokens/s", "batch 1, full fp32 probabilities",
                    times[0], times[1], tokens, 5.0),
            **entry("P4roof", "the same against its roof", "tokens/s",
                    "trunk's forward and one head matmul", times[0], times[2], tokens, 0.85)}


@torch.no_grad()
def generate_uncached(model, prompt, n):
    """Generation as nanoGPT has it: the whole sequence through the trunk again for every token."""
    x = torch.tensor([prompt])
    for _ in range(n):
        x = torch.cat([x, model.lm_head(model(x)[:, -1:]).argmax(-1)], 1)
    return x[0, len(prompt):].tolist()


def p5(size, args):
    """Greedy generation from prompts of GSM8K's lengths, as many tokens for every row."""
    model, n, out = fresh(size["shape"]).eval(), size["new_tokens"], {}
    spread_logits(model)
    prompts = prompts_of(gsm8k_like(size["shape"]["vocab_size"])[:size["prompts"]])
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    few = by_length[len(prompts) // 2:][:size["naive_prompts"]]
    peer = generate_like_transformers(llama(model).eval(), prompts, n)

    def ours():
        out["ours"] = model.generate(prompts, n)

    def uncached():
        out["uncached"] = [generate_uncached(model, prompts[i], n) for i in few]

    def theirs():
        out["hf"] = peer()

    model.generate(prompts[:2], 2)
    ours, hf = timed_turns(size["rounds"], ours, theirs)
    naive = timed_turns(1, uncached)[0] * size["rounds"]
    same("the tokens", [out["ours"][i] for i in few], out["uncached"], 0)
    same("the tokens", out["ours"], out["hf"], 0)
    ours, hf = (divided(rounds, n * len(prompts)) for rounds in (ours, hf))
    return {**entry("P5", f"greedy, {len(prompts)} prompts, {n} new tokens", "new tokens/s",
                    f"no cache, prompt by prompt ({len(few)} of them)", ours,
                    divided(naive, n * len(few)), 1, 10.0),
            **entry("P5hf", "the same", "new tokens/s",
                    "transformers' generate(), left-padded batch", ours, hf, 1, 1.3)}


def p6(size, args):
    """The main job as a newcomer starts it: seconds to its first step, to its table."""
    script = os.path.join(ROOT, "train_wmss.py")
    command = [sys.executable, script, "--threads", str(args.threads), *size["job"]]
    start, first, table = time.perf_counter(), None, False
    with tempfile.TemporaryDirectory() as folder:
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT) as job:
            for line in job.stdout:
                if first is None and "step    1/" in line:
                    first = time.perf_counter() - start
                table = table or line.startswith("wmss (strong)")
        if job.returncode or not table or not first:
            raise SystemExit(f"bench: the main job ended with status {job.returncode} and "
                             f"{'a' if table else 'no'} table: {' '.join(command)}")
        seconds = time.perf_counter() - start
    return {"P6": dict(what="the main job, process to table", ratio=300 / seconds, ours=seconds,
                       peer=300, peer_name="the goal", unit="s", import_to_first_step=first,
                       goal=1.0, rounds=1)}


def step_of_rank(shape, batch, steps, sync, threads):
    """Mean (wall, CPU) seconds of a training step, as the rank that the environment names."""
    if not sync:
        stop_exchanging()
    samples = gsm8k_like(shape["vocab_size"])
    batches = list((torch.arange((steps + 1) * batch) % len(samples)).view(steps + 1, batch))
    times, losses = our_steps(threads, fresh(shape), samples, batches)
    means = [sum(t) / len(t) for t in zip(*times, strict=True)]
    return int(os.environ["RANK"]), means, losses


def p7(size, args):
    """A step of one batch on one rank and on two; beside it two ranks that exchange nothing."""
    got = {(1, True): [], (2, True): [], (2, False): []}
    for r in range(max(2, size["rounds"] // 2)):
        for world, sync in list(got)[::1 if r % 2 == 0 else -1]:
            ranks = apart(step_of_rank, size["shape"], 2 * size["batch"], size["steps"], sync, 1,
                          world=world)
            got[world, sync].append(sorted(ranks)[0])
    same("the losses of one rank and two", got[1, True][0][2], got[2, True][0][2], 1e-4)
    times = {k: [[found[1]] for found in rounds] for k, rounds in got.items()}
    return entry("P7", "step on two gloo ranks, one thread each", "steps/s",
                 "one rank, one thread (ideal: 2)", times[2, True], times[1, True], 1, 1.7,
                 without_exchange=middle(times[1, True]) / middle(times[2, False]))


# ------------------------------------------------------------------------------------------------
# views: how cost grows, where the time goes


def growth_point(shape, B, T, threads):
    """(seconds, peak bytes beyond the model) of forward + backward with the loss on full blocks."""
    model = fresh(shape)
    x = torch.randint(shape["vocab_size"], (B, T + 1))

    def step():
        h = model(x[:, :-1]).flatten(0, 1)                       # (B T, C)
        linear_cross_entropy([(1.0, h, model.lm_head.weight)], x[:, 1:].flatten()).backward()

    before = memory("VmRSS")
    step()
    return median(timed(step)[0] for _ in range(3)), memory() - before


def scaling(size, args):
    """Forward + backward against T, V, layers, batch; loss memory against V x tokens."""
    base = dict(T=size["blocks"][1] // 2, V=size["shape"]["vocab_size"],
                layers=size["shape"]["n_layers"], batch=4)
    record = {}
    print(f"forward + backward from {base}, one changed at a time\n"
          f"{'':>22s}{'seconds':>9s}{'GB':>7s}{'seconds/unit':>15s}")
    for name, values in size["growth"].items():
        for v in values:
            at = {**base, name: v}
            shape = {**size["shape"], "vocab_size": at["V"], "n_layers": at["layers"]}
            ((seconds, peak),) = apart(growth_point, shape, at["batch"], at["T"], args.threads)
            record.setdefault(name, []).append(dict(at=v, seconds=seconds, gb=peak / 1e9))
            print(f"{name:>12s} {v:>8,d} {seconds:9.3f}{peak / 1e9:7.2f}{seconds / v:15.2e}",
                  flush=True)
    at, record["loss"] = {k: v[-2] for k, v in size["loss_growth"].items()}, []
    print(f"mixed loss, forward + backward, width 64, from {at}; GB beyond inputs and their "
          f"gradients\n{'':>12s}{'tokens':>9s}{'V':>10s}{'seconds':>9s}{'GB':>7s}"
          f"{'of V x tokens':>15s}{'ns/(V x token)':>16s}")
    for name, values in size["loss_growth"].items():
        for v in values:
            point = {**at, name: v}
            tokens, V = point["tokens"], point["V"]
            (r,) = apart(loss_once, "ours", tokens, V, 64, 3, args.threads)
            seconds, beyond = middle([r["times"]]), r["peak"] - r["grads"]
            record["loss"].append(dict(point, seconds=seconds, gb=beyond / 1e9))
            print(f"{name:>12s}{tokens:>9,d}{V:>10,d}{seconds:9.3f}{beyond / 1e9:7.2f}"
                  f"{beyond / 4 / (V * tokens):15.1%}{1e9 * seconds / (V * tokens):16.2f}",
                  flush=True)
    return {"scaling": record}


# ATen operators -> what they are for; what is in none of these is "other"
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "compiled": ("triton",),
    "optimizer": ("fused_adamw", "linalg_vector_norm", "foreach"),
    "softmax, loss": ("softmax", "log_softmax", "nll_loss", "logsumexp", "exp", "log", "amax",
                      "maximum", "scatter", "gather"),
    "copies": ("copy", "cat", "zero", "fill", "index", "clone", "embedding")}


def group_of(operator):
    name = operator.removeprefix("aten::").strip("_")
    for group, names in GROUPS.items():
        if any(name == n or name.startswith(n + "_") for n in names):
            return group
    return "compiled" if "Compiled" in name else "other"         # "Torch-Compiled Region", ...


def shares_of(act):
    """-> {group: share of the time of operators, or kernels on a GPU}, and seconds of all."""
    kinds, gpu = torch.profiler.ProfilerActivity, torch.cuda.is_available()
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA][:1 + gpu]) as seen:
        act()
    shares = dict.fromkeys([*GROUPS, "other"], 0.0)
    for e in seen.key_averages():
        if not gpu:
            shares[group_of(e.key)] += e.self_cpu_time_total / 1e6
        elif e.device_type == torch.autograd.DeviceType.CPU:     # a kernel is an event of its own
            shares[group_of(e.key)] += e.self_device_time_total / 1e6
    total = sum(shares.values())
    return {g: s / max(1e-9, total) for g, s in shares.items()}, total


def show_shares(name, seconds, shares):
    print(f"{name:>24s}{seconds:9.4f}" + "".join(f"{s:17.1%}" for s in shares.values()), flush=True)


def profile(size, args):
    """Where the time goes in what P2, P4 and P5hf compare."""
    shape = size["shape"]
    samples, model = gsm8k_like(shape["vocab_size"]), fresh(shape).eval()
    batch, few = list(rounds_of(samples, size)[0]), samples[:size["entropy"]]
    prompts, n = prompts_of(samples[:size["prompts"]]), max(2, size["new_tokens"] // 4)

    def steps(arm):
        weak = None if arm == "sft" else fresh(shape, 1)
        return lambda: our_steps(args.threads, fresh(shape), samples, batch, weak, arm)

    sides = {
        "SFT steps": steps("sft"), "joint steps": steps("joint"), "frozen steps": steps("frozen"),
        "entropies": lambda: measure(model, model, few, train_wmss.Config.micro_batch),
        "entropies, batch 1": lambda: [naive_entropy(m, few) for m in (model, model)],
        "generate": lambda: model.generate(prompts, n),
        "generate, transformers": generate_like_transformers(llama(model).eval(), prompts, n)}
    record = {}
    print(f"share of the operators' own time\n{'':>24s}{'seconds':>9s}" +
          "".join(f"{g:>17s}" for g in [*GROUPS, "other"]))
    for name, act in sides.items():
        act()
        shares, seconds = shares_of(act)
        record[name] = dict(seconds=seconds, **shares)
        show_shares(name, seconds, shares)
    return {"profile": record}


# ------------------------------------------------------------------------------------------------
# on a GPU, bf16


def need_gpu(args):
    """Is there a GPU? LookupError where there is none, but for --quick."""
    if not torch.cuda.is_available() and not args.quick:
        raise LookupError("no GPU here")
    return torch.cuda.is_available()


def fresh_memory():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory():
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def gpu_steps(shape, samples, batch, steps, tokens_per_batch, compiled, arm):
    """Train through train() on the device of the run -> dict: seconds per step (those of the first
    steps left out, torch.compile's with them), tokens per second, FLOP/s, peak bytes, seconds until
    the first step's end, its loss."""
    run = Bench(0, batch_size=batch, micro_batch=batch, tokens_per_batch=tokens_per_batch,
                compile=compiled, log_every=max(1, steps // 4))
    batches = list((torch.arange(steps * batch) % len(samples)).view(steps, batch))
    strong, weak = fresh(shape), None if arm == "sft" else fresh(shape, 1)
    torch.compiler.reset()
    start = time.perf_counter()
    fresh_memory()
    state = run.train(strong, samples, batches, 1e-5, weak, arm)
    span, n = run.marks[-1][0] - run.marks[1][0], run.steps[-1] - run.steps[1]
    tokens = inputs_of([samples[i] for i in batches[0].tolist()])
    return dict(seconds=span / n, tokens=tokens * n / span, flops=state["flops"] / steps * n / span,
                first=run.marks[0][0] - start, memory=peak_memory(), loss=run.losses[0])


def gpu_peer_steps(shape, samples, batch, steps, rows):
    """The same steps with transformers' model under bf16 autocast, padded, `rows` at a time."""
    model = llama(fresh(shape)).to("cuda" if torch.cuda.is_available() else "cpu")
    batches = (torch.arange(steps * batch) % len(samples)).view(steps, batch)
    fresh_memory()
    times, losses = their_steps(model, padded_loss, samples, batches, rows)
    seconds = sum(wall for wall, _ in times[2:]) / (steps - 3)
    tokens = inputs_of([samples[i] for i in batches[0].tolist()])
    return dict(seconds=seconds, tokens=tokens / seconds, memory=peak_memory(), loss=losses[0])


def gpu(size, args):
    """MFU of SFT and joint steps, compiled or not, beside transformers."""
    name = torch.cuda.get_device_name() if need_gpu(args) else "CPU"
    peak = next((v for k, v in PEAK.items() if k in name), math.nan)
    shapes = {"SmolLM2-135M": ({**SHAPE, "n_layers": 30}, 40, 16384),
              "Qwen3-0.6B": (QWEN, 20, 16384)}
    batch = 64
    if args.quick:
        shapes, batch = {"toy": (TINY, 5, 64)}, 4
    record = dict(card=name)
    print(f"{name}: training on GSM8K's lengths, {batch} samples a step, bf16 autocast, fp32 "
          f"weights; MFU of {peak / 1e12:.0f} TFLOP/s\n{'':>34s}{'s/step':>9s}{'tok/s':>10s}"
          f"{'MFU':>7s}{'GB':>7s}{'first step, s':>15s}")

    def line(what, r):
        record[what] = r
        mfu = f"{r['flops'] / peak:7.1%}" if "flops" in r else f"{'':>7s}"
        print(f"{what:>34s}{r['seconds']:9.4f}{r['tokens']:10,.0f}{mfu}{r['memory'] / 1e9:7.1f}"
              f"{r.get('first', math.nan):15.1f}", flush=True)

    for shape_name, (shape, steps, tokens) in shapes.items():
        samples, losses = gsm8k_like(shape["vocab_size"]), []
        for compiled in (False,) if args.quick else (False, True):
            arms = ("sft", "joint", "frozen", "permuted")
            if compiled or shape is QWEN:
                arms = ("sft", "joint")
            for arm in arms:
                what = f"{shape_name} {arm}" + (", compiled" if compiled else "")
                n = max(5, steps // 4) if arm == "permuted" else steps
                try:
                    r = gpu_steps(shape, samples, batch, n, tokens, compiled, arm)
                except torch.cuda.OutOfMemoryError:
                    print(f"{what:>34s}  out of memory", flush=True)
                    continue
                line(what, r)
                if arm == "sft":
                    losses.append(r["loss"])
        peer = gpu_peer_steps(shape, samples, batch, steps, batch // 4)
        line(f"{shape_name} sft, transformers", peer)
        for loss in losses:
            same("the losses", loss, peer["loss"], 2e-2)
    return {"gpu": record}


def gpu_generate(size, args):
    """Generation with and without CUDA graphs (no token differs: tests/test_cuda.py)."""
    cuda, record = need_gpu(args), {}
    device = "cuda" if cuda else "cpu"
    shape, n, times = (TINY, 8, 1) if args.quick else ({**SHAPE, "n_layers": 30}, 256, 4)
    model = fresh(shape).to(device).eval()
    prompts = prompts_of(gsm8k_like(shape["vocab_size"]) * times)
    peer = llama(fresh(shape)).to(device, torch.bfloat16 if cuda else torch.float32).eval()

    def ours(graphs):
        def act():
            Decoder.graphs = graphs
            with torch.autocast(device, torch.bfloat16, enabled=cuda):
                model.generate(prompts, n)
        return act

    print(f"greedy generation, {len(prompts)} prompts, {n} new tokens each, bf16")
    sides = {"CUDA graphs": ours(True), "no graphs": ours(False),
             "transformers generate": generate_like_transformers(peer, prompts, n, device)}
    for what, act in sides.items():
        act()
        seconds = sorted(timed(act)[0] for _ in range(3))
        tokens = len(prompts) * n / seconds[1]
        record[what] = dict(seconds=seconds[1], tokens=tokens, spread=seconds[::2])
        print(f"{what:>34s}{seconds[1]:9.2f} s{tokens:10,.0f} tok/s", flush=True)
    Decoder.graphs = True
    return {"gpu-generate": record}


def gpu_profile(size, args):
    """What the kernels of a step are for, and the share of it in which none runs."""
    cuda, record, steps = need_gpu(args), {}, 3 if args.quick else 6
    shapes = {"SmolLM2-135M": {**SHAPE, "n_layers": 30}, "Qwen3-0.6B": QWEN}
    print(f"kernels of a step, share of its time\n{'':>24s}{'s/step':>9s}" +
          "".join(f"{g:>17s}" for g in [*GROUPS, "other", "idle"]))
    for name, shape in {"toy": TINY}.items() if args.quick else shapes.items():
        samples = gsm8k_like(shape["vocab_size"])
        for arm in ("sft", "joint"):
            def act(shape=shape, samples=samples, arm=arm):
                return gpu_steps(shape, samples, 4 if args.quick else 64, steps, 16384, None, arm)

            seconds = act()["seconds"]
            shares, kernels = shares_of(act)
            busy = kernels / steps / seconds if cuda else 1.0
            found = {g: s * busy for g, s in shares.items()} | dict(idle=1 - busy)
            record[f"{name} {arm}"] = found
            show_shares(f"{name} {arm}", seconds, found)
    return {"gpu-profile": record}


PARTS = dict(P1=p1, P1b=p1b, P2=p2, P3=p3, P4=p4, P5=p5, P6=p6, P7=p7)
VIEWS = {"scaling": scaling, "profile": profile, "gpu": gpu, "gpu-generate": gpu_generate,
         "gpu-profile": gpu_profile}                             # only where they are named

# ------------------------------------------------------------------------------------------------
# command line

MORE = ("time_over_naive", "time_over_naive_cpu", "of_which_gradients_gb",
        "ratio_beyond_gradients", "without_exchange", "import_to_first_step")


def show(record):
    for part, r in record.items():
        if part == "P2":
            words = []
            for arm, goal in zip(("joint", "frozen"), r["goal"], strict=True):
                low, high = r[f"{arm}_spread"]
                words.append(f"{arm}/SFT {r[f'{arm}_over_sft']:.2f} (CPU "
                             f"{r[f'{arm}_over_sft_cpu']:.2f}; {low:.2f}-{high:.2f}), goal {goal}")
            print(f"{part:7s}{r['what']}: SFT {r['sft']:.3f} s; {'   '.join(words)}", flush=True)
        elif "ratio" in r:
            words = f"{r['ratio']:.2f}x"
            if "spread" in r:
                words += f" ({r['spread'][0]:.2f}-{r['spread'][1]:.2f})"
            if "ratio_cpu" in r:
                words += f", CPU {r['ratio_cpu']:.2f}"
            more = "".join(f"; {k.replace('_', ' ')} {r[k]:.2f}" for k in MORE if k in r)
            print(f"{part:7s}{r['what']}: {r['ours']:,.4g} against {r['peer']:,.4g} {r['unit']}, "
                  f"{r['peer_name']}: {words}, goal {r['goal']}{more}", flush=True)
        elif "not_measured" in r:
            print(f"{part:7s}not measured: {r['not_measured']}", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    flag = parser.add_argument
    flag("parts", nargs="*", metavar="PART",
         help=f"{' '.join(PARTS)} (the default: all of these), {' '.join(VIEWS)}")
    flag("--json", metavar="FILE", help="write the numbers there")
    flag("--threads", type=int, default=0,
         help="CPU threads [0: all cores]; P7 always gives each rank one")
    flag("--nanogpt", metavar="PATH", help="nanoGPT's model.py, the peer of P1b")
    flag("--quick", action="store_true", help="toy sizes: does every part run?")
    args = parser.parse_args(argv)
    unknown = [p for p in args.parts if p not in PARTS and p not in VIEWS]
    if unknown:
        raise SystemExit(f"bench: unknown part {', '.join(unknown)}; expected some of "
                         f"{', '.join([*PARTS, *VIEWS])}")
    args.threads = args.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(args.threads)
    cpu = platform.machine()
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                cpu = line.split(":")[1].strip()
                break
    head = dict(commit=commit(), torch=torch.__version__, python=platform.python_version(), cpu=cpu,
                threads=args.threads, load=os.getloadavg()[0],
                size="quick" if args.quick else "full")
    print("bench | " + " | ".join(f"{k} {v}" for k, v in head.items()), flush=True)
    results, size = {"run": head}, QUICK if args.quick else FULL
    for part in args.parts or PARTS:
        try:
            record = {**PARTS, **VIEWS}[part](size, args)
        except LookupError as missing:                           # a peer that is not there
            record = {part: dict(not_measured=missing.args[0])}
        show(record)
        results.update(record)
        if args.json:
            write_text(args.json, json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
