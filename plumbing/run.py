"""What a run stands on: the processes that train together (Ranks), the folder that holds all its
files (Folder), and what a stage prints, logs, saves and takes up again (Progress)."""

import datetime
import json
import math
import os
import platform
import re
import sys
import textwrap
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from data import digest
from model import load_checkpoint, read_config, save_checkpoint
from plumbing import owner, stop, validation
from plumbing.chat import with_template
from plumbing.checkpoints import digest_of
from plumbing.checks import check_interim
from plumbing.cli import flag_of, preset_notes
from plumbing.controls import ARMS, FORMER_NAMES, UNMIXED, Watch
from plumbing.devices import has_bf16, pick
from plumbing.files import commit, in_words, parse_json, read_json, write_text
from plumbing.log_to import SERVICES, numbers_of
from plumbing.report import gap_table
from plumbing.shard import cut, even_out, fill, full, local, shard, weights_of, whole
from plumbing.tasks import data_sets, tokenizer_of
from plumbing.text import CACHE
from plumbing.tokenizer import fingerprint

# may differ when a run is resumed: they change no weight, or only what is added to the run
FREE_ON_RESUME = {"stages", "arm", "resume", "overwrite", "threads", "save_every", "log_every",
                  "save_minutes", "preset", "score_n", "score_split", "score_data", "any_count",
                  "system", "eval_batch", "max_new_tokens", "allow_code_execution", "parallel",
                  "device", "log_to"}
SHARED_SECONDS = 60     # how long another node may take to see what rank 0 has written


class Ranks:
    """The processes of a run (torchrun starts them), and what this one computes on.

    rank: number of this process, world: how many there are; alone it is 0 of 1. device: its GPU,
    or the CPU. autocast(): the context in which models compute, bf16 where a GPU has it.
    sharded: each rank holds only its part of what is trained (plumbing/shard.py). home: where
    models that are to be trained are read to; of shards, rank 0 hands out what it has read.
    """

    def __init__(self, cfg):
        def env(key, default):
            return int(os.environ.get(key, default))

        self.rank, self.world, local = env("RANK", 0), env("WORLD_SIZE", 1), env("LOCAL_RANK", 0)
        known = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if known else os.cpu_count()
        # torchrun sets OMP_NUM_THREADS=1, so the threads are counted here
        torch.set_num_threads(cfg.threads or max(1, cores // env("LOCAL_WORLD_SIZE", 1)))
        name = cfg.device
        if name in ("auto", "cuda") and torch.cuda.is_available():
            name = f"cuda:{local}"                  # each rank has a GPU of its own
        elif name == "auto" and self.world > 1:
            name = "cpu"                            # a Mac has one GPU, and no way to share it
        self.device = pick(name)
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.set_device(self.device)      # fp32 stays fp32: TF32 could move an entropy
        if self.world > 1 and not dist.is_initialized():
            store, rank, world = next(rendezvous("env://"))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                # addresses of dead ranks lie in torchrun's own store after --max-restarts
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                store = dist.PrefixStore(f"attempt {attempt}", store)
            dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank,
                                    world_size=world, timeout=stop.PATIENCE)
        self.bf16 = cfg.dtype == "bf16" or (cfg.dtype == "auto" and has_bf16(self.device))
        self.device_name = f"{self.device.type.upper()}, {torch.get_num_threads()} threads"
        if cuda:
            self.device_name = torch.cuda.get_device_name()
            if self.bf16 and not has_bf16(self.device):
                raise ValueError(f"--dtype bf16: {self.device_name} does not compute in bf16; "
                                 "leave the flag away")
        self.dtype_name = "bf16" if self.bf16 else "fp32"
        self.sharded = cfg.parallel == "fsdp" and self.world > 1
        self.home = "meta" if self.sharded and self.rank > 0 else "cpu"

    def autocast(self, training=False):
        on = self.bf16 and not (training and self.sharded)      # shards have a policy instead
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)

    def data_parallel(self, module):
        """The module whose gradients are averaged over all ranks at the end of each backward."""
        if self.world == 1 or self.sharded:
            return module
        return DistributedDataParallel(module, forward_sync_buffers=False,
                                       gradient_as_bucket_view=True)

    def exchange(self, module, last):
        """The context of a forward and backward pass: gradients are exchanged in the last only."""
        if self.sharded:
            module.set_requires_gradient_sync(last)
        elif self.world > 1 and not last:
            return module.no_sync()
        return nullcontext()

    def agree(self, ok):
        """Whether it is so on every rank, where each looks at a shard of its own."""
        if self.sharded:
            ok = torch.as_tensor(ok, dtype=torch.int32, device=self.device)
            dist.all_reduce(ok, dist.ReduceOp.MIN)
        return bool(ok)

    def first(self, act):
        """Call act() on rank 0 only; what it refuses ends all ranks."""
        message = [None]
        if self.rank == 0:
            try:
                act()
            except (ValueError, OSError) as e:
                if os.environ.get("WMSS_TRACEBACK"):
                    raise
                message = [in_words(e)]
        if self.world > 1:
            dist.broadcast_object_list(message)
        if message[0]:
            raise ValueError(message[0])

    def sum(self, tensor):
        """The sum over ranks of a tensor, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, rows):
        """The lists of all ranks, dealt out in turn: rank r brought items r, r + world, ..."""
        if self.world == 1:
            return rows
        shares = [None] * self.world
        dist.all_gather_object(shares, rows)
        return [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]

    def barrier(self):
        if self.world > 1:
            dist.barrier()

    def close(self):
        """Leave at once: gloo's threads abort the interpreter's own shutdown now and then."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
            sys.stdout.flush()
            os._exit(0)


class Folder:
    """out/NAME: where each file of a run lies, and its log. Only rank 0 writes."""

    def __init__(self, cfg, rank=0, path=None):
        self.cfg, self.rank = cfg, rank
        self.out = path or os.path.join("out", cfg.name)
        self.commit = commit()
        self.service = None                 # of --log-to
        # what one page of report.html has read for the next: costs of models, tokens.json
        self.spent, self.view = {}, {}

    def path(self, *names):
        return os.path.join(self.out, *names)

    def models(self, names):
        """{name: path} of those models of the run that are there, in the order of names."""
        paths = {"base": self.checkpoint(0), "sft": self.checkpoint(1),
                 "fused": self.path("weak.pt")}
        if not os.path.exists(self.path("wmss.pt")):        # it is saved last
            names = [name for name in names if name not in ("weak", "fused")]
        found = {}
        for name in names:
            path = paths.get(name) or self.path(f"{name}.pt")
            if path in (self.cfg.base, self.cfg.sft) or os.path.exists(path):
                found[name] = path
        if not found:
            raise ValueError(f"no checkpoint in {self.out} to score; run the stages before it")
        return found

    def checkpoint(self, t):
        """Path of M_t: 0 is the base, 1 the SFT model, rounds + 1 the result."""
        if t == 0:
            return self.cfg.base or self.path("base.pt")
        if t == 1:
            return self.cfg.sft or self.path("sft.pt")
        return self.path("wmss.pt" if t == self.cfg.rounds + 1 else f"wmss-round{t - 1}.pt")

    def has(self, t):
        """Whether M0 or M1 is there: made by this run, or named by a flag (perhaps on the hub)."""
        return bool((self.cfg.base, self.cfg.sft)[t]) or os.path.exists(self.checkpoint(t))

    def gaps(self, t):
        return self.path("gaps.pt" if t == 1 else f"gaps-round{t}.pt")

    def weak(self, t):
        """Path of the weak model of round t: M_{t-1}, or the snapshot that a flag names."""
        if t == 1 and self.cfg.weak_snapshot:
            return self.cfg.weak_snapshot
        return self.checkpoint(t - 1)

    def say(self, *words):
        if self.rank == 0:
            print(*words, flush=True)

    def log(self, **record):
        if self.rank == 0:
            with open(self.path("log.jsonl"), "a") as f:
                f.write(json.dumps(record) + "\n")
            if self.cfg.log_to and "step" in record:
                self.service = self.service or SERVICES[self.cfg.log_to](self.cfg, self.out)
                self.service.send(record["arm"], record["step"], numbers_of(record))

    def close(self):
        if self.service:
            self.service.close()

    def read_log(self):
        """The records of log.jsonl; a line that a crash left half-written is none."""
        records = []
        if not os.path.exists(self.path("log.jsonl")):      # a kill came before it
            return records
        with open(self.path("log.jsonl"), errors="replace") as f:
            for line in f:
                try:
                    record = parse_json(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and isinstance(record.get("step", 0), int):
                    records.append(record)
        return records

    def keep_log(self, wanted):
        """Drop the records that are not wanted, and half lines with them."""
        if self.rank == 0:
            kept = [json.dumps(record) + "\n" for record in self.read_log() if wanted(record)]
            write_text(self.path("log.jsonl"), "".join(kept))

    def save(self, name, model, **meta):
        weights = weights_of(model)                         # all ranks: it may be cut
        if self.rank == 0:
            save_checkpoint(self.path(name), model, weights, **meta)

    def open(self, data):
        """Make the folder, or check that it may be gone on with; data: digest of the samples."""
        cfg, without_lock = self.cfg, owner.lock(self.out)
        if without_lock:
            self.say(without_lock)
        begun = owner.has_begun(self.out)
        if begun and not owner.is_run(self.out):
            raise ValueError(f"{self.out} has no config.json of this program, so it is not a run "
                             "of ours; not touched, choose another --name or delete it yourself")
        if begun and not cfg.resume and not cfg.overwrite:
            raise ValueError(f"{self.out} exists; --resume goes on with it, --overwrite "
                             "deletes it, --name chooses another")
        paths = {name: getattr(cfg, name) for name in ("base", "sft", "weak_snapshot")}
        models = {name: digest_of(path) for name, path in paths.items() if path}
        config = {**asdict(cfg), "digest": data, "models": models}
        if begun and cfg.overwrite:
            owner.remove(self.out)
        if begun and cfg.resume:
            config = self._check_same_run(data, models)
            self._drop_scores()
            for former, name in FORMER_NAMES.items():
                there = os.listdir(self.out)
                if f"{former}.pt" in there and f"{name}.pt" not in there:
                    os.rename(self.path(f"{former}.pt"), self.path(f"{name}.pt"))
            self.keep_log(lambda record: True)
        write_text(self.path("config.json"), json.dumps(config, indent=1))
        owner.sweep_up(self.out)
        owner.sweep_up(CACHE, age=86_400)       # which other runs write to, also on other nodes

    def check_shared(self, ranks):
        """ValueError unless all ranks see in the folder what rank 0 has just written there."""
        path = self.path(f"seen.tmp{os.getpid()}")          # one that a kill leaves is swept up
        wanted = [path, str(time.time())]
        if ranks.world == 1:
            return
        if self.rank == 0:
            write_text(path, wanted[1])
        dist.broadcast_object_list(wanted)
        patience = time.time() + SHARED_SECONDS
        while not self._holds(*wanted) and time.time() < patience:
            time.sleep(0.1)
        blind = ranks.gather([None if self._holds(*wanted) else f"{self.rank} ({platform.node()})"])
        blind = [rank for rank in blind if rank]
        if self.rank == 0:
            os.remove(path)
        if blind:
            raise ValueError(f"rank {', '.join(blind)} does not see {os.path.abspath(self.out)} of "
                             "rank 0; start all nodes in a folder that they share")

    def check_same(self, ranks, *marks):
        """ValueError unless all ranks have read the same data, and all nodes the same models."""
        paths, models = [self.cfg.base, self.cfg.sft, self.cfg.weak_snapshot], None
        if ranks.world > 1 and os.environ.get("LOCAL_RANK", "0") == "0":
            models = [digest_of(path) for path in paths if path]
        found = ranks.gather([(marks, models, f"{ranks.rank} ({platform.node()})")])
        other = [rank for mark, model, rank in found
                 if mark != found[0][0] or model not in (None, found[0][1])]
        if other:
            raise ValueError(f"rank {', '.join(other)} has other files than rank 0 under the names "
                             "of --data, --base and the like; give all nodes the same ones")

    def _holds(self, path, text):
        try:
            with open(path) as f:
                return f.read() == text
        except OSError:
            return False

    def _drop_scores(self):
        """A table describes the checkpoints beside it: it goes if one of them has gone."""
        try:
            rows = read_json(self.path("scores.json"), {})["rows"]
            own = [self.path(os.path.basename(row["checkpoint"])) for row in rows
                   if os.path.basename(os.path.dirname(row["checkpoint"])) == self.cfg.name]
        except (KeyError, TypeError):
            return
        if not all(map(os.path.exists, own)):
            self.say("scores.json and report.html were of checkpoints that are gone: removed")
            for name in ("scores.json", "report.html"):
                if os.path.exists(self.path(name)):
                    os.remove(self.path(name))

    def has_files(self, rate, besides=""):
        """Whether an arm that has this learning rate has left a checkpoint or an interim state; of
        base and sft also what was made from them."""
        order = ("base", "sft", *ARMS)
        arms = [arm for arm in order if rate_of(arm) == rate]
        if arms in (["base"], ["sft"]):
            arms = [*order[order.index(arms[0]):], "gaps"]
        own = re.compile(rf"(resume-)?({'|'.join(arms)})(-round\d+)?\.pt")
        left = set(os.listdir(self.out)) - {os.path.basename(besides)}
        return not arms or any(map(own.fullmatch, left))

    def recorded(self, key):
        """What config.json says, if the run is gone on with or rank 0 has just begun it; or ""."""
        is_new = self.cfg.overwrite and self.rank == 0 or not owner.is_run(self.out)
        return "" if is_new else read_json(self.path("config.json"), {}).get(key, "")

    def _check_same_run(self, data, models):
        """-> the settings of the run in this folder, which are this run's."""
        old = read_json(self.path("config.json"), {})
        different = []
        for name, value in asdict(self.cfg).items():
            if name in old and old[name] != value and name not in FREE_ON_RESUME:
                if name.endswith("_lr") and not self.has_files(name):
                    old[name] = value                       # after it has diverged, say
                    continue
                different.append(f"{flag_of(name)} {old[name]!s:.60} -> {value}")
        if different:
            raise ValueError(f"{self.out} was started with other values ({', '.join(different)}); "
                             "resume with the same ones or choose another --name")
        if old.get("digest", data) != data:                 # flags name files, not what is in them
            raise ValueError(f"{self.out} was started on other samples than --data (or this code) "
                             "now gives; bring the old ones back or choose another --name")
        for name, mark in models.items():
            if old.setdefault("models", {}).setdefault(name, mark) != mark:
                raise ValueError(f"{flag_of(name)} {getattr(self.cfg, name)} is another model than "
                                 f"when {self.out} was started; bring the old one back or choose "
                                 "another --name")
        return old

    def header(self, ranks, compile, data_report):
        """Say and log what runs on what."""
        versions = dict(python=platform.python_version(), torch=torch.__version__)
        self.log(commit=self.commit, versions=versions, device=ranks.device_name,
                 ranks=ranks.world, dtype=ranks.dtype_name, compile=compile, argv=sys.argv[1:],
                 config=asdict(self.cfg))
        self.say(f"WMSS | {ranks.device_name} x {ranks.world} | {ranks.dtype_name} | "
                 f"compile {compile} | python {versions['python']}, torch {versions['torch']} | "
                 f"commit {self.commit}")
        words = [f"{name} {' '.join(value) if isinstance(value, list) else value}"
                 for name, value in asdict(self.cfg).items() if value not in ("", None, [])]
        text = ", ".join(word.replace(" ", "\0") for word in words)     # only commas end a line
        self.say(textwrap.indent(textwrap.fill(text, 98, break_long_words=False,
                                               break_on_hyphens=False), "  ").replace("\0", " "))
        if self.cfg.preset:
            self.say(f"  preset {self.cfg.preset}: {preset_notes(self.cfg.preset)}")
        for line in data_report:
            self.say(line)
        if self.cfg.lam == 0 and "wmss" in self.cfg.stages:
            self.say("--lam 0: mixed logits are the weak model's alone, so M1 stays as it is")


def sample_flops(model_config, samples):
    """Forward FLOPs of each sample in a model of that GPTConfig -> (N,) float64."""
    counts = [(len(s.tokens) - 1, int(s.loss[1:].sum())) for s in samples]
    n, n_loss = torch.tensor(counts, dtype=torch.float64).T
    return model_config.forward_flops(n, n * (n + 1) / 2, n_loss)


def step_flops(samples, strong, weak=None, joint=True):
    """FLOPs of training on each sample -> (N,) float64; backward costs two forward passes.

    strong, weak: the GPTConfigs of the models. A weak model that is trained, too, costs as much
    as if it were alone, a frozen one its forward pass.
    """
    cost = 3 * sample_flops(strong, samples)
    if weak is not None:
        cost = cost + (3 if joint else 1) * sample_flops(weak, samples)
    return cost


def rate_of(arm):
    """The field of Config with the learning rate of an arm, of the base or of SFT."""
    name = arm.split("-round")[0]
    return ARMS[name].lr if name in ARMS else f"{name}_lr"


class Run:
    """What the stages share: the settings, the processes, the folder, the data set D."""
    held_out = ()           # samples for the validation loss

    def __init__(self, cfg, ranks, folder):
        self.cfg, self.ranks, self.folder = cfg, ranks, folder
        self.stop = stop.Stop(ranks)
        self.compiles = {True: "on", False: "off", None: "auto"}[cfg.compile]

    def __enter__(self):
        self.stop.listen()

    def __exit__(self, *error):
        self.stop.restore()
        self.folder.close()
        owner.unlock(self.folder.out)

    def read_data(self):
        """The tokenizer (that of the base) and the samples of D."""
        cfg, self.data_report = self.cfg, []
        self.enc = tokenizer_of({})
        if cfg.task == "text":
            self._choose_template()
        self.tokenizer = fingerprint(self.enc)
        self.samples, self.held_out = data_sets(asdict(cfg), self.enc, self.data_report.append)
        self.digest = digest([*self.samples, *self.held_out])

    def _choose_template(self):
        """The chat format; what no flag says of it is as in this run's past, in M1, in the base."""
        cfg = self.cfg
        enc, given = tokenizer_of(read_config(cfg.base)[1]), {}
        if cfg.sft:
            given = tokenizer_of(read_config(cfg.sft)[1]).settings
        given = enc.settings | given
        if given.get("kwargs") and not cfg.template_kwargs:
            cfg.template_kwargs = json.dumps(given["kwargs"])
        today = datetime.date.today().isoformat()
        cfg.template_date = (cfg.template_date or self.folder.recorded("template_date")
                             or given.get("date", today))
        self.enc = with_template(enc, cfg.template, cfg.template_date, cfg.template_kwargs)

    def prepare(self, mixed_loss):
        """Models that are to be trained go to the device and learn how to save memory there."""
        mixed_loss.strong.checkpointing = self.cfg.checkpointing
        if mixed_loss.weak is not None:                     # frozen: it has no backward
            mixed_loss.weak.checkpointing = self.cfg.checkpointing and mixed_loss.joint
        if self.ranks.sharded:
            shard(mixed_loss, self.ranks)
        mixed_loss.to(self.ranks.device).train()

    def compile(self, mixed_loss):
        """torch.compile the layers; narrow models are bound by launches, and slower compiled."""
        wanted = self.cfg.compile
        if wanted is None:
            wanted = self.ranks.device.type == "cuda" and mixed_loss.strong.cfg.dim >= 1024
        for model in (mixed_loss.strong, mixed_loss.weak):
            if wanted and model is not None:
                model.compile_layers()

    def report_gaps(self, path, gaps):
        """Say and log what the entropy pass has found."""
        mass = {}
        for s, weight in zip(self.samples, gaps.weights.tolist(), strict=True):
            mass[s.family] = mass.get(s.family, 0.0) + weight
        self.folder.keep_log(lambda record: record.get("gaps") != path)
        self.folder.log(gaps=path, mass=mass)
        self.folder.say(f"\nentropy: {gaps.weak} -> {gaps.live}\n{gap_table(gaps, self.samples)}")

    def report_draw(self, name, arm, batches):
        """Say and log what an arm of stage 3 will be trained on."""
        drawn = torch.cat(list(batches))
        tokens = sum(int(self.samples[i].loss[1:].sum()) for i in drawn.tolist())
        unique, n = len(drawn.unique()), len(self.samples)
        loss = "plain cross-entropy"
        if arm.weak and name.partition("-round")[0] not in UNMIXED:
            loss = f"mixed logits, lam {self.cfg.lam:g}, weak {arm.weak}"
        if arm.control is not None:
            loss += f", {getattr(arm.control, '__name__', 'a control').lower()}"
        self.folder.say(f"\n{name}: {loss}, gap {arm.gap}, {len(batches)} steps | "
                        f"{len(drawn):,} samples drawn, {unique / n:.1%} of the data set seen, "
                        f"{tokens:,} loss tokens")
        self.folder.keep_log(lambda record: record.get("draw") != name)
        self.folder.log(draw=name, drawn=len(drawn), unique=unique, data=n, loss_tokens=tokens)


class Progress:
    """One training stage from the outside: its log lines, its saves, its resumption, its cost."""

    def __init__(self, run, arm, mixed_loss, opt, samples, batches, snapshots, gap_rule):
        self.run, self.cfg, self.folder, self.ranks = run, run.cfg, run.folder, run.ranks
        self.arm, self.opt, self.batches, self.snapshots = arm, opt, batches, snapshots
        self.strong, self.weak, self.mixed_loss = mixed_loss.strong, mixed_loss.weak, mixed_loss
        self.control = mixed_loss.control
        if hasattr(self.control, "attach"):
            self.control.attach(opt, len(batches))
        self.params = opt.param_groups[0]["params"]
        self.lr = opt.param_groups[0]["lr"]                 # the peak; the loop sets that of a step
        self.watch = Watch(mixed_loss, self.cfg.lam, gap_rule)
        weak = None if self.weak is None else self.weak.cfg
        self.cost = step_flops(samples, self.strong.cfg, weak, mixed_loss.joint)
        # a short stage shows its curve too
        self.log_every = max(1, min(self.cfg.log_every, len(batches) // 8))
        self.tokens, self.seconds, self.found = 0, 0.0, {}
        self.measured = validation.steps_of(run, len(batches))
        self.first, self.flops = 0, 0.0

    def _check_disk(self):
        """Room for the model, its snapshots, and an interim state while it replaces another."""
        sizes = [sum(w.numel() * w.element_size() for w in weights) for weights in (
            self.strong.parameters(), self.weak.parameters() if self.weak else (), self.params)]
        interim = sizes[0] + sizes[1] + 2 * sizes[2]
        needed = (1 + len(self.snapshots)) * sizes[0] + sizes[1] + 2 * interim
        there = self.folder.path(f"resume-{self.arm}.pt")       # one of the two, after a break
        needed -= os.path.getsize(there) if os.path.exists(there) else 0
        said = owner.check_disk(self.folder.out, self.arm, needed)
        if needed > 1e9:
            self.folder.say(said)

    def take_up(self):
        """Load resume-ARM.pt into models and optimizer if there is one -> the first step to do."""
        self.ranks.first(self._check_disk)
        path, meta = self.folder.path(f"resume-{self.arm}.pt"), {}
        if self.cfg.resume and os.path.exists(path):
            saved, meta = load_checkpoint(path, self.ranks.home, self.run.tokenizer)
            self.ranks.first(partial(check_interim, path, meta, self.params, self.weak,
                                     len(self.batches)))
        step = meta["step"] if meta.get("arm") == self.arm else 0
        # the log may have records of steps that will be done again
        self.folder.keep_log(lambda record: record.get("arm") != self.arm
                             or record.get("step", 0) <= step)
        if step:
            fill(self.strong, saved.state_dict())
            if self.weak is not None:
                fill(self.weak, meta["weak"])
            for p, state in zip(self.params, meta["optimizer"], strict=True):
                if state is not None:       # a file is read into the CPU's memory
                    self.opt.state[p] = {key: cut(t, p) for key, t in state.items()}
            torch.set_rng_state(meta["rng"])
            self.seconds, self.flops = meta["seconds"], meta["flops"]
            self.folder.say(f"{self.arm}: resumed after step {step}")
        self.run.compile(self.mixed_loss)
        self.first = step
        self.started = self.mark = self.saved = time.time()
        return step

    def begin(self, step, micros, n_tokens):
        """Before the first micro-batch of a step."""
        self.run.stop.waits = True
        if self.ranks.sharded:
            even_out(micros, self.ranks)
        if hasattr(self.control, "begin"):
            self.control.begin(step, micros)
        self.logs = (step == 0 or (step + 1) % self.log_every == 0 or step + 1 in self.measured
                     or (step + 1) % self.cfg.save_every == 0 or self.is_last(step))
        self.n_tokens = n_tokens
        self.watch.begin(n_tokens, self.logs and (self.ranks.sharded or self.ranks.rank == 0))

    def is_last(self, step):
        return step == len(self.batches) - 1

    def gradients(self, total):
        """After the last backward of a step, before its gradients are clipped."""
        self.found = {}
        if self.watch.every and self.ranks.agree(total.isfinite()):
            self.found = self.watch.read()

    def end(self, step, total, gnorm, rows):
        """After the update: the log line, the check that nothing has diverged, the saves."""
        self.tokens += sum(len(s.tokens) - 1 for s in rows)
        self.flops += float(self.cost[self.batches[step]].sum())
        done, late = step + 1, time.time() - self.saved > 60 * self.cfg.save_minutes
        signal, due = self.run.stop.agree(late and self.ranks.rank == 0)
        due = (due or signal or done % self.cfg.save_every == 0) and not self.is_last(step)
        saves = done in self.snapshots or due or self.is_last(step)
        sound = not saves or self.ranks.agree(all(local(p).isfinite().all() for p in self.params))
        if done in self.measured and sound:
            began = time.time()
            self.found |= validation.of_training(self.run, self.mixed_loss)
            self.started += time.time() - began             # no time of training
            self.mark += time.time() - began
        if self.logs or not sound:
            self._report(done, total, full(gnorm), sound)
        if done in self.snapshots:
            name = os.path.join("snapshots", f"{self.arm}-{done:06d}.pt")
            self.folder.save(name, self.strong, **self.state(done))
        if due:
            weak = None if self.weak is None else weights_of(self.weak)
            optimizer = [whole(self.opt.state.get(p)) for p in self.params]
            self.folder.save(f"resume-{self.arm}.pt", self.strong,
                             **self.state(done, optimizer=optimizer, weak=weak))
            self.saved = time.time()
        if due and signal:
            self.run.stop.leave_together(signal, f"{self.arm} is saved after step {done} of "
                                                 f"{len(self.batches)}")

    def _report(self, done, total, gnorm, sound):
        steps, now = len(self.batches), time.time()
        loss = self.ranks.sum(total).item() / max(1, self.n_tokens)
        speed = self.tokens / max(1e-9, now - self.mark)
        eta = int((now - self.started) / (done - self.first) * (steps - done))
        lr = self.opt.param_groups[0]["lr"]
        self.mark, self.tokens = now, 0
        if not (sound and math.isfinite(loss) and math.isfinite(gnorm)):
            raise ValueError(f"{self.arm} has diverged at step {done} (loss {loss:g}, gradient "
                             f"norm {gnorm:g}): it has no checkpoint; start it again with a lower "
                             f"learning rate than {self.lr:g}: {self._again()}")
        self.folder.say(f"{self.arm:9s} step {done:4d}/{steps} | loss {loss:.4f} | lr {lr:.1e} | "
                        f"gnorm {gnorm:.2f} | tok/s {speed:,.0f} | eta {eta // 60}:{eta % 60:02d}" +
                        (f" | val {self.found['val_loss']:.4f}" if done in self.measured else ""))
        self.folder.log(arm=self.arm, step=done, loss=loss, lr=lr, gnorm=float(gnorm),
                        loss_tokens=self.n_tokens, tok_s=round(speed), **self.found)

    def _again(self):
        """The command that trains this arm again at a third of its rate, beside others of it."""
        folder, arm, rate = self.folder, self.arm.split("-round")[0], rate_of(self.arm)
        lower = [flag_of(rate), f"{self.lr / 3:.1g}"]
        interim = folder.path(f"resume-{self.arm}.pt")
        if self.arm not in ("base", "sft") and folder.has_files(rate, besides=interim):
            return stop.command("--name", f"{self.cfg.name}-{arm}", "--arm", arm,
                                "--stages", "entropy,wmss", "--sft", folder.checkpoint(1), *lower,
                                *(["--base", folder.checkpoint(0)] if folder.has(0) else []))
        again = stop.command("--resume", *lower)
        return f"rm {interim} && {again}" if os.path.exists(interim) else again

    def state(self, step, **more):
        """What a checkpoint holds beside the model, after so many steps."""
        return dict(arm=self.arm, step=step, cursor=step * self.cfg.batch_size, flops=self.flops,
                    seconds=self.seconds + time.time() - self.started, rng=torch.get_rng_state(),
                    config=asdict(self.cfg), commit=self.folder.commit,
                    tokenizer=self.run.tokenizer, tokenizer_files=self.run.enc.files, **more)


