"""Public peers of bench.py, set up as their users would: transformers' model, Trainer and generate,
TRL's SFTTrainer, the authors' released joint model, HumanEval's harness. Nothing is ours but the
clocks. What is not installed raises Missing with the command that installs it.
"""

import importlib
import json
import resource
import subprocess
import sys
import time
from contextlib import redirect_stdout
from statistics import fmean
from tempfile import TemporaryDirectory

import torch
from torch.nn.utils.rnn import pad_sequence

import train_wmss


class Missing(Exception):
    """A peer, or a device, that is not here; its text says how to get it."""


def clocks():
    """Now: (wall, CPU) seconds, all threads of this process and all processes it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def between(marks):
    """Readings of the clocks -> the (wall, CPU) seconds from each to the next."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]


def timed(act, *args):
    """-> the (wall, CPU) seconds of act(*args), what it returned"""
    before = clocks()
    result = act(*args)
    return between([before, clocks()]), result


def need(*names):
    """The modules of these names."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as e:
        raise Missing(f"{e}: pip install -r tests/requirements.txt trl accelerate") from None


def loss_tokens(samples):
    return sum(int(s.loss[1:].sum()) for s in samples)


def config_of(c, cls, **more):
    """Our GPTConfig as one of transformers' configurations, without a stop token."""
    return cls(vocab_size=c.vocab_size, hidden_size=c.dim, num_hidden_layers=c.n_layers,
               num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads,
               head_dim=c.head_dim, intermediate_size=c.ffn_dim, rms_norm_eps=c.norm_eps,
               max_position_embeddings=c.max_seq_len, tie_word_embeddings=c.tie_embeddings,
               attn_implementation="sdpa", bos_token_id=None, eos_token_id=None, **more)


def weights_of(model):
    return {name if name.startswith("lm_head") else "model." + name: value
            for name, value in model.state_dict().items()}


def llama(model):
    """transformers' model (Llama, with q and k norms Qwen3) with our weights, no stop token."""
    transformers, = need("transformers")
    kind = "Qwen3" if model.cfg.qk_norm else "Llama"
    rope = dict(rope_type="default", rope_theta=model.cfg.rope_theta)
    peer = getattr(transformers, kind + "ForCausalLM")(config_of(
        model.cfg, getattr(transformers, kind + "Config"), rope_parameters=rope))
    peer.load_state_dict(weights_of(model))
    peer.generation_config.eos_token_id = peer.generation_config.pad_token_id = None
    return peer


def authors_model(path, strong, weak, checkpointing):
    """The authors' joint model with our weights, from a checkout of their release."""
    sys.path.insert(0, path)
    if not need("transformers")[0].__version__.startswith("4."):
        raise Missing("the authors' code takes an older transformers: pip install --target OLD "
                          "transformers==4.57.1, then PYTHONPATH=OLD python bench.py P2authors ...")
    config, modeling = need("EnsembleQwen3.configuration_qwen3", "EnsembleQwen3.modeling_qwen3")
    peer = modeling.QwenBoostForCausalLM(config_of(
        strong.cfg, config.Qwen3Config, rope_theta=strong.cfg.rope_theta, num_sub_models=2,
        fusion_lambda=train_wmss.Config.lam)).train()
    for part, model in zip(peer.sub_models, (weak, strong), strict=True):   # lambda: the second's
        part.load_state_dict(weights_of(model))
    if checkpointing:
        peer.gradient_checkpointing_enable(dict(use_reentrant=False))
    return peer


def padded(rows):
    """Samples -> what transformers' models read, (B, T); -100 where nothing is to be learned."""
    labels = [s.tokens.masked_fill(~s.loss, -100) for s in rows]
    return dict(
        input_ids=pad_sequence([s.tokens for s in rows], batch_first=True),
        labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        attention_mask=pad_sequence([torch.ones_like(s.tokens) for s in rows], batch_first=True))


def padded_loss(model, rows, n):
    given = {name: t.to(model.device) for name, t in padded(rows).items()}
    return model(**given, use_cache=False, num_items_in_batch=n).loss       # over n tokens


def their_steps(model, loss_of, samples, batches, rows=None, lr=1e-4):
    """Steps as a stock trainer does them, padded to the longest, `rows` samples at a time -> (wall,
    CPU) seconds of all steps but the first; losses."""
    params = list(model.parameters())
    device = params[0].device.type
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    marks, losses = [], []
    for i, batch in enumerate(batches):
        opt.param_groups[0]["lr"] = train_wmss.lr_at(i, len(batches), lr, 0.1)
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


def grouped(samples, batch, n):
    """n * batch samples, batch by batch as transformers' sampler groups a large data set of these
    lengths: 50 batches are sorted together, of which n are taken, evenly spaced."""
    pt_utils, = need("transformers.trainer_pt_utils")
    lengths = [len(samples[i % len(samples)].tokens) for i in range(200 * batch)]
    g = torch.Generator().manual_seed(0)
    order = list(pt_utils.LengthGroupedSampler(batch, lengths=lengths, generator=g))
    starts = [batch * (50 * (2 * i + 1) // (2 * n)) for i in range(n)]
    return [samples[i % len(samples)] for start in starts for i in order[start:start + batch]]


def trainer_epoch(kind, model, samples, batch, lr):
    """The samples once, in this order, with transformers' Trainer (kind "group") or TRL's
    SFTTrainer ("pack": packed) -> (wall, CPU) seconds; mean loss of a token."""
    datasets, transformers = need("datasets", "transformers")
    datasets.disable_progress_bars()
    with TemporaryDirectory() as folder, redirect_stdout(None):
        how = dict(output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=1,
                   learning_rate=lr, weight_decay=0.0, logging_steps=1, save_strategy="no",
                   report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
                   disable_tqdm=True, train_sampling_strategy="sequential")
        if kind == "group":
            need("accelerate")
            args = transformers.TrainingArguments(**how, remove_unused_columns=False)
            trainer = transformers.Trainer(model, args, train_dataset=samples, data_collator=padded)
        else:
            trl, tokenizers = need("trl", "tokenizers")
            if kind == "pack":              # a row of as many tokens as a batch has, and some room
                tokens = sum(len(s.tokens) for s in samples) * batch // len(samples)
                how.update(packing=True, max_length=tokens * 11 // 10,
                           per_device_train_batch_size=1)
            words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, "x"))
            words = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="x",
                                                         eos_token="x")
            rows = [dict(input_ids=s.tokens.tolist(), completion_mask=s.loss.int().tolist())
                    for s in samples]
            trainer = trl.SFTTrainer(model, trl.SFTConfig(**how, completion_only_loss=True),
                                     train_dataset=datasets.Dataset.from_list(rows),
                                     processing_class=words)
        collate, counts = trainer.data_collator, []

        def counted(rows):
            given = collate(rows)
            counts.append(int((given["labels"] != -100).sum()))
            return given

        trainer.data_collator = counted
        spent, _ = timed(trainer.train)
    return spent, fmean([r["loss"] for r in trainer.state.log_history if "loss" in r], counts)


def generate_like_transformers(peer, n, prompts, **how):
    """n new tokens for each prompt, left-padded, with transformers."""
    rows = [torch.tensor(p, device=peer.device) for p in prompts]
    x, mask = (pad_sequence(part, batch_first=True, padding_side="left")
               for part in (rows, [torch.ones_like(row) for row in rows]))        # (B, T)
    tokens = peer.generate(x, attention_mask=mask, max_new_tokens=n, do_sample=False,
                           pad_token_id=0, **how)
    return tokens[:, x.size(1):].tolist()


def compiled_cache(is_on):
    """How transformers' generate takes a cache of fixed size, its steps compiled on a CPU too."""
    transformers, = need("transformers")
    how = transformers.CompileConfig(mode="default")
    how._compile_all_devices = is_on        # else on accelerators only
    return dict(cache_implementation="static", compile_config=how)


# HumanEval's harness without its guards: a small interpreter forks a process for each program
HARNESS = """
import json, os, signal, sys
from concurrent.futures import ThreadPoolExecutor
def passes(program):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    signal.alarm(3)
    try:
        exec(program, {})
        os._exit(0)
    finally:
        os._exit(1)
programs, workers = json.load(sys.stdin)
with ThreadPoolExecutor(workers) as pool:
    print(json.dumps([*pool.map(passes, programs)]), file=sys.stderr)
"""


def run_plainly(jobs, workers):
    """[(problem, code)] -> does each program pass its test? Nothing confines it."""
    programs = []
    for p, code in jobs:
        call = f"\ncheck({p.entry_point})" if "def check(" in p.test else ""
        programs.append(f"{p.code}{code}\n{p.test}{call}")
    said = subprocess.run([sys.executable, "-c", HARNESS], input=json.dumps([programs, workers]),
                          text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return json.loads(said.stderr.splitlines()[-1])
