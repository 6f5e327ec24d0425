"""WMSS, all three stages: train a base model, fine-tune it (SFT), find the gaps
between a weak snapshot and the live model, go on training on mixed logits of
both. Only the strong model is kept.

Paper: Weak-Driven Learning, arXiv 2602.08222 (v2, sections 3.1-3.3, Algorithm
1). Where the loss or the data differ from plain SFT, a line says `# WMSS`.

    torchrun train_wmss.py                    # CPU, some minutes, no download
    torchrun --nproc_per_node 8 train_wmss.py # 8 GPUs; plain `python` works
    torchrun train_wmss.py --preset smollm2-gsm8k   # real weights, real text
    python train_wmss.py --name toy --resume        # go on where it stopped
    python train_wmss.py --name more --base out/toy/base.pt \\
        --sft out/toy/sft.pt --arm frozen permuted  # controls, from the same M1

Shapes: B rows and T positions of a bucket, C width, V vocabulary, N loss tokens
of a micro-batch.
"""

import plumbing  # noqa: F401  (how threads wait; before torch)

# isort: split

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor

import eval_code
import eval_math
from data import Sample, micro_batches, schedule, send
from entropy import WEIGHTS, Gaps, find_gaps, gap_mask, load_pair
from model import GPT, GPTConfig, load_checkpoint, read_config
from plumbing import validation
from plumbing.benchmarks import CODE_SETS, parse_spec
from plumbing.checks import STAGES, check_flags, check_inputs
from plumbing.cli import arg, parse, program
from plumbing.controls import ARMS, ROWS, arm_of, needs_gaps
from plumbing.loss import linear_cross_entropy
from plumbing.report import write_report
from plumbing.run import Folder, Progress, Ranks, Run, sample_flops, step_flops
from plumbing.scores import Questions, Scores
from plumbing.tasks import corpus_set

# ---- configuration: each field is a flag; a plain `my_temp: float = 1.0` would be one, too -----


@dataclass
class Config:
    name: str = arg("toy", "everything the run makes lies in out/NAME", group="the run")
    preset: str = arg("", "a file of flags: smoke, mistakes, mistakes-code, smollm2-gsm8k, "
                      "qwen3-0.6b-gsm8k, qwen3-4b-am or your own; flags of the command line win")
    stages: str = arg(",".join(STAGES), "the stages to run, in this order")
    resume: Literal["", "yes", "auto"] = arg("", "go on with an interrupted out/NAME, or add "
                                             "stages to it; auto: start it if need be", bare="yes")
    overwrite: bool = arg(False, "delete an existing out/NAME first")
    seed: int = arg(0, "of initialisation, data and order", low=0, high=2**31 - 1)
    threads: int = arg(0, "CPU threads of each process; 0: cores / processes", low=0)
    dtype: Literal["auto", "fp32", "bf16"] = arg("auto", "auto: bf16 on a GPU, fp32 on a CPU")
    device: str = arg("auto", "cuda, mps, cpu; auto: the first that is there")
    parallel: Literal["ddp", "fsdp"] = arg("ddp", "several GPUs: each holds all of the models, or "
                                           "(FSDP2) a shard of them")
    compile: bool | None = arg(None, "torch.compile in training (default: wide models on a GPU)")

    task: Literal["toy-math", "toy-code", "text"] = arg(
        "toy-math", "sums in columns; words -> a Python expression; the text of --data",
        group="data: a built-in task, or text")
    data: list[str] = arg([], "text: .jsonl, .parquet, folders, hub NAME[:CONFIG][@SPLIT]")
    val_data: list[str] = arg([], "text: as --data, held out: its loss is in the log and a table")
    val_share: float = arg(0.0, "instead, a share of the data", low=0, high=0.5)
    template: str = arg("auto", "chat format: auto, plain, chatml, none, or a Jinja file")
    template_kwargs: str = arg("", "JSON of what else it reads, as {\"enable_thinking\": false}")
    template_date: str = arg("", "the day that it writes (default: the first of the run, or M1's)")
    prompt_column: str = arg("", "text: name of the column of prompts, if it is another")
    completion_column: str = arg("", "text: name of the column of completions")
    max_len: int = arg(1024, "text: most tokens of a sample that the model reads", low=1)
    long: Literal["drop", "truncate", "error"] = arg("error", "text: what becomes of longer ones")
    corpus: int = arg(12000, "samples of the noisy corpus that the base is trained on", low=1)
    noise: float = arg(0.5, "share of the corpus that makes the usual mistake", low=0, high=1)
    clean: int = arg(1000, "samples of the clean data set D, for SFT and WMSS", low=1)
    label_noise: float = arg(0.0, "share of D with the usual mistake, if it can", low=0, high=1)

    dim: int = arg(96, "width", low=1, group="model")
    n_layers: int = arg(2, "layers", low=1)
    n_heads: int = arg(4, "attention heads", low=1)
    base: str = arg("", "M0: a checkpoint, Hugging Face folder or hub name; none: train a base")
    sft: str = arg("", "M1: this checkpoint, instead of fine-tuning")

    batch_size: int = arg(64, "samples of an optimizer step, over all ranks", low=1,
                          group="optimisation: AdamW, linear warm-up, linear decay to 0")
    micro_batch: int = arg(64, "most samples of a forward pass; a step takes several if need be",
                           low=1)
    tokens_per_batch: int = arg(0, "most tokens of a forward pass; 0: no limit", low=0)
    checkpointing: bool = arg(False, "recompute activations: less memory, a third more time")
    base_steps: int = arg(1200, "steps of the base", low=1)
    base_lr: float = arg(3e-3, "peak learning rate of the base", above=0)
    sft_epochs: float = arg(1.0, "epochs of SFT over D", above=0)
    sft_lr: float = arg(1e-4, "peak learning rate of SFT", above=0, text=1e-5)
    wmss_epochs: float = arg(1.0, "epochs of wmss; the others: as many steps or FLOPs", above=0)
    # each arm's best of 1e-5, 3e-5, ..., 3e-3 on the validation problems of toy-math, five seeds;
    # text=, the default with --data, is the paper's
    sft_steps_lr: float = arg(1e-4, "peak learning rate of sft-steps", above=0, text=1e-5)
    sft_flops_lr: float = arg(3e-4, "peak learning rate of sft-flops", above=0, text=1e-5)
    joint_lr: float = arg(1e-4, "peak learning rate of joint", above=0, text=1e-5)
    wmss_lr: float = arg(3e-5, "peak learning rate of wmss and the controls", above=0, text=1e-5)
    mask_lr: float = arg(1e-4, "peak learning rate of wmss-mask", above=0, text=1e-5)
    warmup: float = arg(0.1, "share of a stage's steps", low=0, high=1)
    weight_decay: float = arg(0.0, "of AdamW", low=0)
    clip: float = arg(1.0, "largest norm of the gradient, both models together", above=0)
    chunk_rows: int = arg(0, "tokens whose logits exist at a time; 0: 128 MB of them", low=0)

    arm: list[str] = arg(["sft-steps", "sft-flops", "joint", "wmss", "wmss-mask"],
                         "what stage 3 trains", choices=tuple(ARMS), group="WMSS")
    lam: float = arg(0.5, "weight of the strong logits in the mix (eq. 5)", low=0, high=1)
    weak: Literal["joint", "frozen"] = arg("joint", "of wmss, wmss-mask, permuted: trained, too?")
    weak_snapshot: str = arg("", "the weak model: any checkpoint with the tokenizer (default: M0)")
    weights: str = arg("code", "formula of the sampling weights", choices=tuple(WEIGHTS))
    alpha: float = arg(0.1, "weight term: base difficulty (v2: consolidation)", low=0)
    beta: float = arg(0.8, "weight term: consolidation (v2: current difficulty)", low=0)
    gamma: float = arg(0.1, "weight term: regression repair", low=0)
    dedup: bool = arg(False, "of equal draws keep the first only (v2)")
    gap: Literal["none", "sample", "token", "both"] = arg(
        "sample", "wmss uses gaps as sampling weights (the paper), as a mask on the mixing, both")
    tau: float = arg(0.01, "gap mask: nats of change; tau = h = 0: all tokens are in it", low=0)
    h: float = arg(0.05, "gap mask: nats of weak entropy that make a token hard", low=0)
    rounds: int = arg(1, "K; round t mixes M_{t-1} into M_t", low=1)

    snapshots: int = arg(2, "SFT snapshots, for --weak-snapshot", low=0, group="output")
    save_every: int = arg(200, "steps between saves of the state that --resume goes on from", low=1)
    save_minutes: float = arg(10.0, "and minutes, whichever comes first", above=0)
    log_every: int = arg(50, "most steps between log lines", low=1)
    log_to: str = arg("", "send each step's record there, too", choices=("tensorboard", "wandb"))
    score_n: int = arg(2100, "problems of each set to score; 0: all", low=0, text=0)
    score_split: Literal["test", "val"] = arg("test", "built-in tasks: choose on val")
    score_data: list[str] = arg([], "text: gsm8k, mbpp=FILE, NAME[:GRADER]=FILE of your own")
    any_count: bool = arg(False, "score benchmarks of another size than published, too")
    system: str = arg("", "text: system prompt of the scored questions; paper is the paper's")
    eval_batch: int = arg(700, "prompts decoded together", low=1, text=32)
    allow_code_execution: bool = arg(False, "run the programs that models write, confined")
    max_new_tokens: int = arg(64, "per answer; the toy's longest has 61", low=1, text=512)


# ---- the loss: paper v2, eq. 5 and 6 -----------------------------------------------------------


class MixedLoss(nn.Module):
    """The models and the summed loss of a micro-batch in nats: the one module that DDP wraps.

    control: a function (branches, y) in place of linear_cross_entropy, see plumbing/controls.py.
    """

    def __init__(self, strong: GPT, weak: GPT | None = None, joint: bool = True,
                 chunk_rows: int | None = None, control: Callable | None = None):
        super().__init__()
        self.strong, self.weak, self.joint = strong, weak, joint
        self.chunk_rows, self.control = chunk_rows, control
        if weak is not None:
            weak.requires_grad_(joint)

    def forward(self, x: Tensor | list[Tensor], y: Tensor, positions: Tensor,
                lam: float | Tensor) -> Tensor:
        """x: token ids, (B, T) or a list of buckets; y (N,) targets; positions (N,): where they
        are predicted, as indices into all positions of x end to end; lam: a number or (N,)."""
        def hidden(model):
            return model(x).flatten(0, -2).index_select(0, positions)       # (N, C)

        branches = [(lam, hidden(self.strong), self.strong.lm_head.weight)]
        if self.weak is not None:                           # WMSS, eq. 5
            branches.append((1 - lam, hidden(self.weak), self.weak.lm_head.weight))
        if self.control is not None:
            return self.control(branches, y)
        # cross-entropy of z = sum of c * h @ W.T over the branches (c, h, W), without storing z
        return linear_cross_entropy(branches, y, self.chunk_rows)


# ---- training: one function for the base, SFT, WMSS and what is compared with it ---------------


def lr_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then a decay that reaches 0 after the last one."""
    rise = max(1, round(warmup * steps))
    return peak * min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def train(run: Run, arm: str, strong: GPT, samples: list[Sample], batches: Sequence[Tensor],
          lr: float, weak: GPT | None = None, joint: bool = True, gaps: Gaps | None = None,
          control: Callable | None = None, snapshots: Collection[int] = ()) -> dict:
    """Train strong (and weak) in place -> the final state: a checkpoint without its model.

    batches: one tensor of sample indices per optimizer step, from data.schedule(). weak: mix its
    logits in; joint: and train it, too. gaps: mix only on tokens that are in an entropy gap.
    snapshots: the steps after which strong is saved. Interrupted training is taken up again.
    """
    cfg, ranks, steps = run.cfg, run.ranks, len(batches)
    mixed_loss = MixedLoss(strong, weak, joint, cfg.chunk_rows or None, control)
    run.prepare(mixed_loss)                     # device, shards, recomputation, .train()
    params = [p for p in mixed_loss.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr, betas=(0.9, 0.95), weight_decay=cfg.weight_decay,
                            fused=True)
    progress = Progress(run, arm, mixed_loss, opt, samples, batches, snapshots,
                        partial(gap_mask, tau=cfg.tau, h=cfg.h))
    first = progress.take_up()                  # 0, or where a run broke off; also compiles
    ddp = ranks.data_parallel(mixed_loss)
    for step in range(first, steps):
        rows = [samples[i] for i in batches[step].tolist()]
        n_tokens = sum(int(s.loss[1:].sum()) for s in rows)     # of all ranks and micro-batches
        opt.param_groups[0]["lr"] = lr_at(step, steps, lr, cfg.warmup)
        total = torch.zeros((), device=ranks.device)
        micros = micro_batches(rows, cfg.micro_batch, ranks.rank, ranks.world,
                               cfg.tokens_per_batch)
        progress.begin(step, micros, n_tokens)  # lets controls and the log get ready
        for i, batch in enumerate(micros):
            positions = batch.loss_mask.flatten().nonzero()[:, 0]
            x, y, lam = batch.x, batch.y.flatten()[positions], 1.0
            if weak is not None:                            # WMSS
                lam = cfg.lam                               # the paper: mix on every token
                if gaps is not None:                        # our variant: only on tokens in a gap
                    lam = torch.where(gaps.codes_of(batch.ids) > 0, cfg.lam, 1.0)
            x, y, positions, lam = send((x, y, positions, lam), ranks.device)
            last = i == len(micros) - 1                     # ranks exchange gradients once a step
            with ranks.exchange(ddp, last):
                with ranks.autocast(training=True):
                    loss = ddp(x, y, positions, lam)
                # DDP and FSDP average over ranks; times their number it is the mean
                (loss * (ranks.world / max(1, n_tokens))).backward()
            total += loss.detach()
        progress.gradients(total)               # their norms, for the log
        gnorm = nn.utils.clip_grad_norm_(params, cfg.clip)
        opt.step()
        opt.zero_grad()
        progress.end(step, total, gnorm, rows)
    return progress.state(steps)


# ---- stages: each reads files and writes files, and is skipped when its files are there --------


def finish(run: Run, name: str, model: GPT, state: dict):
    """The end of an arm: its checkpoint is written, then its interim state goes."""
    run.folder.save(f"{name}.pt", model, **state)
    interim = run.folder.path(f"resume-{name}.pt")
    if run.ranks.rank == 0 and os.path.exists(interim):
        os.remove(interim)
    report(run)
    run.stop.allow()                    # a signal that came meanwhile ends the program here


def report(run: Run):
    """At the end of every stage, report.html shows what there is to see by now."""
    run.ranks.first(partial(write_report, run, load_gaps, eval_math.wilson))


def stage_base(run: Run):
    """M0, where no flag names one: a small model trained on the noisy corpus."""
    cfg = run.cfg
    if run.folder.has(0) or cfg.sft and cfg.weak_snapshot:          # then nothing needs it
        return
    samples = corpus_set(run.enc, cfg.corpus, cfg.seed, cfg.noise, cfg.task, cfg.label_noise)
    torch.manual_seed(cfg.seed)
    model = GPT(GPTConfig(vocab_size=run.enc.n_vocab, dim=cfg.dim, n_layers=cfg.n_layers,
                          n_heads=cfg.n_heads))
    n_params = sum(p.numel() for p in model.parameters())
    run.folder.say(f"\nbase: {n_params:,} parameters, {len(samples):,} noisy samples")
    batches = schedule(len(samples), cfg.batch_size, cfg.seed, steps=cfg.base_steps)
    finish(run, "base", model, train(run, "base", model, samples, batches, cfg.base_lr))


def stage_sft(run: Run):
    """Stage 1: M0 fine-tuned on D -> M1, with snapshots on the way."""
    cfg = run.cfg
    if run.folder.has(1):
        return
    model, _ = load_checkpoint(run.folder.checkpoint(0), run.ranks.home, run.tokenizer)
    batches = schedule(len(run.samples), cfg.batch_size, cfg.seed, epochs=cfg.sft_epochs)
    run.folder.say(f"\nsft: {len(run.samples):,} samples, {len(batches)} steps")
    snapshots = {len(batches) * (i + 1) // (cfg.snapshots + 1) for i in range(cfg.snapshots)} - {0}
    state = train(run, "sft", model, run.samples, batches, cfg.sft_lr, snapshots=snapshots)
    finish(run, "sft", model, state)


def stage_entropy(run: Run, t: int):
    """Stage 2 of round t: the gaps between the weak snapshot and M_t over D -> gaps.pt."""
    cfg, folder, path, started = run.cfg, run.folder, run.folder.gaps(t), time.time()
    if not needs_gaps(cfg) or os.path.exists(path):
        return
    device, tokenizer = run.ranks.device, run.tokenizer
    weak, live, _ = load_pair(folder.weak(t), folder.checkpoint(t), tokenizer, device)
    gaps = find_gaps(weak, live, run.samples, tau=cfg.tau, h=cfg.h, alpha=cfg.alpha, beta=cfg.beta,
                     gamma=cfg.gamma, kind=cfg.weights, micro_batch=cfg.micro_batch,
                     tokens_per_batch=cfg.tokens_per_batch, chunk_rows=cfg.chunk_rows or None,
                     rank=run.ranks.rank, world=run.ranks.world)
    gaps.flops = sum(float(sample_flops(m.cfg, run.samples).sum()) for m in (weak, live))
    gaps.seconds, gaps.commit = time.time() - started, folder.commit
    gaps.weak, gaps.live, gaps.tokenizer = folder.weak(t), folder.checkpoint(t), tokenizer
    run.report_gaps(path, gaps)
    if run.ranks.rank == 0:
        gaps.save(path)
    del weak, live                          # report() reads both again, if it needs them
    report(run)


def load_gaps(run: Run, t: int) -> Gaps:
    return Gaps.load(run.folder.gaps(t), run.samples, run.folder.weak(t), run.folder.checkpoint(t),
                     run.tokenizer)


def draw(run: Run, t: int, gap: str, **length):
    """-> (gaps of round t or None, the batches of stage 3); length: epochs= or steps=."""
    cfg, gaps = run.cfg, (load_gaps(run, t) if gap != "none" else None)
    weights = gaps.weights if gap in ("sample", "both") else None       # WMSS: the curriculum
    # epochs after those of SFT (+ 2: one that it began, one that filled its last batch), the same
    # for all arms of round 1; where weights are drawn, they draw from the whole set
    first_epoch = int(cfg.sft_epochs) + 2 + (t - 1) * (int(cfg.wmss_epochs) + 2)
    return gaps, schedule(len(run.samples), cfg.batch_size, cfg.seed, first_epoch,
                          weights=weights, dedup=cfg.dedup, **length)


def steps_of(run: Run, name: str) -> int:
    """Optimizer steps of an arm: those of wmss; sft-flops: as many as take the FLOPs of wmss.

    With one round wmss need not have been trained: what it draws gives its steps and FLOPs.
    """
    cfg, folder, steps, budget = run.cfg, run.folder, 0, 0.0
    strong = read_config(folder.checkpoint(1), run.tokenizer)[0]
    for t in range(1, cfg.rounds + 1):
        gaps, batches = draw(run, t, cfg.gap, epochs=cfg.wmss_epochs)
        steps += len(batches)
        if name == "sft-flops":
            weak = read_config(folder.weak(t), run.tokenizer)[0]
            mixed = step_flops(run.samples, strong, weak, cfg.weak == "joint")
            budget += float(sum(mixed[b].sum() for b in batches)) + (gaps.flops if gaps else 0.0)
    if name != "sft-flops":
        return steps
    plain, steps = step_flops(run.samples, strong), 0
    longest = int(budget / (float(plain.min()) * cfg.batch_size)) + 1
    for batch in draw(run, 1, "none", steps=longest)[1]:
        if budget <= 0:
            break
        budget, steps = budget - float(plain[batch].sum()), steps + 1
    return steps


def stage_arm(run: Run, name: str, t: int = 1):
    """Stage 3: M_t trained on as the arm says (wmss: in round t) -> its checkpoint."""
    cfg, folder, samples, arm = run.cfg, run.folder, run.samples, arm_of(run.cfg, name)
    file = f"wmss-round{t}" if name == "wmss" and t < cfg.rounds else name
    if os.path.exists(folder.path(f"{file}.pt")):
        return
    weak = None
    if arm.weak:
        path = folder.checkpoint(t) if arm.weak == "itself" else folder.weak(t)
        weak, strong, meta = load_pair(path, folder.checkpoint(t), run.tokenizer, run.ranks.home)
    else:
        strong, meta = load_checkpoint(folder.checkpoint(t), run.ranks.home, run.tokenizer)
    length = dict(epochs=cfg.wmss_epochs) if name == "wmss" else dict(steps=steps_of(run, name))
    gaps, batches = draw(run, t, arm.gap, **length)
    run.report_draw(file, arm, batches)
    state = train(run, file, strong, samples, batches, getattr(cfg, arm.lr), weak=weak,
                  joint=arm.weak == "joint", gaps=gaps if arm.gap in ("token", "both") else None,
                  control=arm.control(cfg) if arm.control else None)
    # what this round and those before it cost, the entropy pass included: sft-flops gets the same
    spent = [dict(state, steps=len(batches))] + ([meta["spent"]] if t > 1 else [])
    spent += [vars(gaps)] if gaps else []               # measuring takes no steps
    cost = {key: sum(part.get(key, 0) for part in spent) for key in ("steps", "flops", "seconds")}
    if name == "wmss" and t == cfg.rounds:
        folder.save("weak.pt", weak, **state, spent=cost)
    finish(run, file, strong, dict(state, spent=cost))


def sets_to_score(run: Run) -> list[Questions]:
    """What every model of the run is asked: the built-in task, or the sets of --score-data."""
    cfg, sets = run.cfg, []
    system = eval_math.PAPER_SYSTEM if cfg.system == "paper" else cfg.system
    for spec in cfg.score_data if cfg.task == "text" else [cfg.task]:
        name, wrap, own = parse_spec(spec)[0], None, {}
        is_code = name in ("toy-code", *CODE_SETS)
        if not is_code:
            own = dict(columns=(cfg.prompt_column, cfg.completion_column))
        module = eval_code if is_code else eval_math
        problems = module.load_problems(spec, cfg.score_n or None, any_count=cfg.any_count,
                                        split=cfg.score_split, **own)
        if cfg.task == "text":
            wrap = eval_math.chat(run.enc, system, raw=is_code)
        judge = partial(eval_math.judge, dataset=getattr(problems[0], "grader", name))
        if is_code:
            judge = partial(eval_code.judge, problems=problems,
                            allow_code_execution=cfg.allow_code_execution,
                            workers=max(1, os.cpu_count() // 2 // run.ranks.world))
        sets.append(Questions(name, spec, problems, wrap, judge))
    return sets


def stage_score(run: Run):
    """Every model of the run on held-out problems -> table, scores.json, answers, report.html."""
    cfg, folder, ranks, sets = run.cfg, run.folder, run.ranks, sets_to_score(run)
    scores = Scores(run, sets)
    for name, path in folder.models(ROWS).items():
        model, meta = load_checkpoint(path, ranks.device, run.tokenizer)
        paths, weak, lam, judged = [path], None, 1.0, []
        if name == "fused":             # its path is that of weak.pt, to be mixed with wmss.pt
            paths, weak, lam = [path, folder.path("wmss.pt")], model, cfg.lam
            model, _ = load_checkpoint(paths[1], ranks.device, run.tokenizer)
        how = dict(max_new_tokens=cfg.max_new_tokens, batch_size=cfg.eval_batch, lam=lam)
        for questions in sets:
            share = questions.problems[ranks.rank::ranks.world]
            kept = scores.begin(name, paths, questions, share, **how)
            with ranks.autocast():
                rows = eval_math.complete(model.eval(), run.enc, share, wrap=questions.wrap,
                                          weak=weak, answers=kept, **how)   # it grades, too
            judged += ranks.gather(rows)
        cost = {} if name in ("weak", "fused") else meta.get("spent") or meta
        scores.add(judged, model=name, **eval_math.summary(judged), flops=cost.get("flops"),
                   seconds=cost.get("seconds"), checkpoint=path)
    scores.write()
    report(run)
    scores.close()


def run_stages(run: Run):
    """The stages that the flags name, in their order."""
    cfg, stages = run.cfg, run.cfg.stages.split(",")
    if "base" in stages:
        stage_base(run)
    if "sft" in stages:
        stage_sft(run)
    for t in range(1, cfg.rounds + 1):
        if "entropy" in stages:
            stage_entropy(run, t)
        if "wmss" in stages and "wmss" in cfg.arm:
            stage_arm(run, "wmss", t)
    for name in cfg.arm:                # after wmss, whose rounds give the others their steps
        if "wmss" in stages and name != "wmss":             # the stage wmss trains all arms
            stage_arm(run, name)
    if "score" in stages and run.held_out:
        validation.table(run, partial(MixedLoss, chunk_rows=cfg.chunk_rows or None))
        report(run)
    if "score" in stages and (cfg.task != "text" or cfg.score_data):
        stage_score(run)


@program("train_wmss")
def main(argv: list[str] | None = None):
    cfg, _ = parse(Config, argv, description=__doc__, check=check_flags)
    ranks = Ranks(cfg)
    run = Run(cfg, ranks, Folder(cfg, ranks.rank))

    def start():
        check_inputs(run, needs_gaps(cfg), sets_to_score)       # reads the data
        run.folder.open(run.digest)
        run.stop.has_begun = True

    with run:                       # the lock on the folder, and the signals
        ranks.first(start)
        run.folder.check_shared(ranks)
        if ranks.rank > 0:
            run.read_data()             # after rank 0, which leaves tokenised text in the cache
        run.folder.check_same(ranks, run.digest, run.tokenizer)
        run.folder.header(ranks, run.compiles, run.data_report)
        run_stages(run)
    ranks.close()


if __name__ == "__main__":
    main()
