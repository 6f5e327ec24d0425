"""model.py against a float64 reference, transformers, and decoding one token at a time without a cache."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import model as model_file
from plumbing import tokenizer
from conftest import ROOT
from model import (GPT, GPTConfig, config_from_hf, config_to_hf, export, load_checkpoint, main, read_config, read_header,
                   save_checkpoint, write_atomically, write_safetensors)
from plumbing.tokenizer import fingerprint, toy_encoding

CONFIGS = {
    "plain": dict(),
    "gqa": dict(n_heads=4, n_kv_heads=2),
    "mqa, untied": dict(n_heads=4, n_kv_heads=1, tie_embeddings=False),
    "own head_dim": dict(n_heads=2, head_dim=24),
    "qk_norm": dict(n_heads=4, n_kv_heads=2, head_dim=10, qk_norm=True),
    "qkv_bias": dict(qkv_bias=True, rope_theta=1e5, norm_eps=1e-5),
}


def tiny(seed=0, scale=8.0, **kw):
    """A random model whose weights are large enough that every part of it shows in the logits."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**dict(vocab_size=23, dim=32, n_layers=2, n_heads=4, max_seq_len=64), **kw}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)).mul_(scale if p.dim() == 2 else 1)
    return model.eval()


def reference_logits(model, tokens):
    """The same network in numpy float64, position by position and head by head; RoPE as a product of complex numbers."""
    c, w = model.cfg, {k: v.double().numpy() for k, v in model.state_dict().items()}
    norm = lambda x, g: x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * g
    half = c.head_dim // 2
    freq = c.rope_theta ** (-np.arange(half) * 2 / c.head_dim)

    def rope(x, pos):
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * pos * freq)
        return np.concatenate([z.real, z.imag])

    x = w["embed_tokens.weight"][tokens]
    for i in range(c.n_layers):
        p = f"layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (h @ w[f"{p}self_attn.{n}_proj.weight"].T + w.get(f"{p}self_attn.{n}_proj.bias", 0) for n in "qkv")
        y = np.zeros((len(tokens), c.n_heads * c.head_dim))
        for head in range(c.n_heads):
            group = head // (c.n_heads // c.n_kv_heads)
            cut = lambda a, j: a[:, j * c.head_dim:(j + 1) * c.head_dim]
            qh, kh, vh = cut(q, head), cut(k, group), cut(v, group)
            if c.qk_norm:
                qh, kh = norm(qh, w[p + "self_attn.q_norm.weight"]), norm(kh, w[p + "self_attn.k_norm.weight"])
            qh, kh = (np.stack([rope(a[t], t) for t in range(len(tokens))]) for a in (qh, kh))
            for t in range(len(tokens)):
                s = kh[:t + 1] @ qh[t] / np.sqrt(c.head_dim)
                a = np.exp(s - s.max())
                y[t, head * c.head_dim:(head + 1) * c.head_dim] = (a / a.sum()) @ vh[:t + 1]
        x = x + y @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = (h @ w[f"{p}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"]) @ w["lm_head.weight"].T


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_a_float64_reference(name):
    """Bug: RoPE interleaved or of the wrong sign, QK-norm after RoPE, a kv head given to the wrong query heads, eps, scale."""
    model = tiny(**CONFIGS[name]).double()
    tokens = np.random.default_rng(1).integers(0, 23, 17)
    with torch.no_grad():
        ours = model.logits(torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(ours, reference_logits(model, tokens), rtol=2e-5, atol=2e-5)     # RoPE tables are fp32


# Weights by a formula, read by transformers 5.23 (fp32, CPU): its logits of the first five ids after 40 tokens
GOLDEN = {
    "llama, rope scaled, tied": (
        dict(n_heads=4, n_kv_heads=2, rope_theta=500.0, rope_factor=8.0, rope_original_len=24, tie_embeddings=True),
        [-0.36629, -0.43068, 0.15657, 0.12765, -0.93300]),
    "qwen2": (dict(n_heads=2, head_dim=8, qkv_bias=True, norm_eps=1e-5, tie_embeddings=False),
              [-1.50055, -2.19757, -0.65813, 1.59675, 2.11958]),
    "qwen3": (dict(n_heads=2, n_kv_heads=1, head_dim=12, qk_norm=True, tie_embeddings=False),
              [-0.34846, 1.04342, 0.86962, -0.67913, -1.16548]),
}


def by_formula(**kw):
    """A model whose i-th weight is a fixed function of i, whatever torch's generators do."""
    model, at = GPT(GPTConfig(vocab_size=31, dim=16, n_layers=2, ffn_dim=24, max_seq_len=64, **kw)), 0
    for name, p in sorted(model.named_parameters()):
        wave = torch.sin(1.7 * torch.arange(at, at + p.numel(), dtype=torch.float64) ** 1.1)
        p.data = ((1 + 0.3 * wave) if "norm" in name else 0.6 * wave).float().view(p.shape)
        at += p.numel()
    return model.eval(), torch.arange(40)[None] * 7 % 31


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_equal_golden_ones(name):
    """Bug: a change of the network on a machine that has no transformers to notice it."""
    kw, want = GOLDEN[name]
    model, x = by_formula(**kw)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(x)[0, -1, :5], torch.tensor(want), rtol=1e-4, atol=1e-4)


LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=24)
PARITY = {
    "llama": ("Llama", dict()),
    "llama, tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama, own head_dim": ("Llama", dict(head_dim=12, num_key_value_heads=1)),
    "llama, rope scaled": ("Llama", dict(head_dim=16, rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(rms_norm_eps=1e-5)),
    "qwen2, tied": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3, own head_dim": ("Qwen3", dict(head_dim=12)),
    "qwen3, tied": ("Qwen3", dict(head_dim=8, tie_word_embeddings=True,
                                  rope_parameters=dict(rope_type="default", rope_theta=1e6))),
}


def theirs(name, folder=None, **save):
    """A random network of transformers, its biases and norms too; saved in folder."""
    transformers = pytest.importorskip("transformers")
    kind, kw = PARITY[name]
    torch.manual_seed(0)
    hf = getattr(transformers, kind + "ForCausalLM")(getattr(transformers, kind + "Config")(
        **{**dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  intermediate_size=64, max_position_embeddings=64, tie_word_embeddings=False), **kw})).eval()
    with torch.no_grad():
        for p in hf.parameters():
            p.add_(0.3 * torch.randn_like(p))
    if folder:
        hf.save_pretrained(folder, **save)
    return hf


def close(ours, want):
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("name", PARITY)
def test_logits_and_gradients_equal_those_of_transformers(name, tmp_path):
    """Bug: a network that agrees with its own authors' reading of the paper but not with the released weights' code."""
    hf, x = theirs(name, tmp_path), torch.randint(0, 50, (2, 61))             # beyond LLAMA3's 24 original positions
    model = GPT.from_pretrained(tmp_path)
    want, ours = hf(x).logits, model.logits(x)
    close(ours, want)
    for z in (want, ours):
        F.cross_entropy(z[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    grads = {k: p.grad for k, p in model.named_parameters()}
    assert len(grads) == len(list(hf.parameters()))
    for k, p in hf.named_parameters():
        close(grads[k.removeprefix("model.")], p.grad)


def test_sharded_weights_are_the_same_weights(tmp_path):
    """Bug: only the first shard read, or the index taken for a list of tensors."""
    theirs("qwen2", tmp_path / "one")
    theirs("qwen2", tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (GPT.from_pretrained(tmp_path / n).state_dict() for n in ("one", "many"))
    assert one.keys() == many.keys() and all(torch.equal(one[k], many[k]) for k in one)


def test_both_layouts_of_the_rope_scaling_are_read(tmp_path):
    """Bug: rope_theta 10,000 for every Llama 3 that was saved before transformers 5."""
    theirs("llama, rope scaled", tmp_path)
    new, _ = read_config(tmp_path)
    c = json.loads((tmp_path / "config.json").read_text())
    rope = c.pop("rope_parameters")
    c["rope_theta"] = rope.pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps({**c, "rope_scaling": rope}))
    old, _ = read_config(tmp_path)
    assert old == new and (new.rope_theta, new.rope_factor, new.rope_original_len) == (500.0, 8.0, 24)


@pytest.mark.parametrize("kind", ("Llama", "Qwen2", "Qwen3"))
def test_what_config_json_leaves_out_is_what_transformers_takes_it_for(kind, tmp_path):
    """Bug: LLaMA-1, which names no rope_theta and no kv heads, loaded with other ones; a head tied because ours are."""
    short = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                 max_position_embeddings=64)
    short |= {"Llama": dict(), "Qwen2": dict(num_key_value_heads=2), "Qwen3": dict(num_key_value_heads=2, head_dim=8)}[kind]
    got = config_from_hf(dict(short, model_type=kind.lower()))
    want = getattr(pytest.importorskip("transformers"), kind + "Config")(**short)
    assert (got.n_kv_heads, got.norm_eps, got.rope_theta, got.tie_embeddings, got.head_dim, got.max_seq_len) == (
        want.num_key_value_heads, want.rms_norm_eps, want.rope_parameters["rope_theta"], want.tie_word_embeddings, 8, 64)


def test_weights_are_converted_and_rope_tables_are_not(tmp_path):
    """Bug: cos and sin in bf16, where positions 256 and 257 are one angle; a bf16 file loaded as noise."""
    model = tiny()
    folder(tmp_path / "a", model)
    half = GPT.from_pretrained(tmp_path / "a", torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half.cos.dtype == torch.float32
    folder(tmp_path / "b", half)
    back = GPT.from_pretrained(tmp_path / "b")
    for k, w in model.state_dict().items():
        assert torch.equal(half.state_dict()[k], w.bfloat16()) and torch.equal(back.state_dict()[k], w.bfloat16().float())
    assert torch.equal(back.cos, model.cos) and torch.equal(half.sin, model.sin)


def test_loading_draws_no_random_numbers(tmp_path):
    """Bug: seconds and twice the memory spent on random weights that the file overwrites."""
    folder(tmp_path / "a", tiny())
    save_checkpoint(tmp_path / "a.pt", tiny())
    before = torch.get_rng_state()
    GPT.from_pretrained(tmp_path / "a"), GPT.from_pretrained(tmp_path / "a.pt"), read_config(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_costs_little_more_memory_than_the_weights(tmp_path):
    """Bug: the file's tensors, their fp32 copies and a random network all at once: three times the weights."""
    cfg = GPTConfig(vocab_size=8192, dim=512, n_layers=8, n_heads=8)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in GPT(cfg).state_dict().items() if k != "lm_head.weight"}
    tmp_path.joinpath("config.json").write_text(json.dumps(config_to_hf(cfg)))
    write_safetensors(tmp_path / "model.safetensors", {k: torch.ones(s, dtype=torch.bfloat16) for k, s in shapes.items()})
    code = ("import re, sys, model\n"             # not ru_maxrss, which a child inherits from its parent
            "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); before = peak()\n"
            "weights = sum(p.nbytes for p in model.GPT.from_pretrained(sys.argv[1]).parameters())\n"
            "print((peak() - before) / weights)")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, capture_output=True, check=True)
    assert 0.5 < float(done.stdout) < 1.3


@pytest.mark.parametrize("kw", (dict(), dict(n_heads=4, n_kv_heads=2, qk_norm=True)))
def test_checkpointing_changes_memory_and_nothing_else(kw):
    """Bug: gradients of another function; a flag that recomputes and yet keeps every activation."""
    model, x, found = tiny(**kw).train(), torch.arange(60).view(2, 30) % 23, {}
    for model.checkpointing in (False, True):
        kept = {}

        def pack(t):
            kept[t.untyped_storage().data_ptr()] = t.nbytes
            return t

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            z = model.logits(x)
        for p in model.parameters():
            kept.pop(p.data_ptr(), None)
        z.square().mean().backward()
        found[model.checkpointing] = sum(kept.values()), z.detach(), [p.grad for p in model.parameters()]
    (much, z0, g0), (little, z1, g1) = found[False], found[True]
    assert torch.equal(z0, z1) and all(torch.equal(a, b) for a, b in zip(g0, g1))
    assert little < 0.3 * much, (little, much)
    with torch.no_grad():
        assert torch.equal(model.logits(x), z0)


def folder(path, model, rename=lambda k: "model." + k if k != "lm_head.weight" else k, **config):
    """model as a Hugging Face folder without a tokenizer; config overrides entries of config.json, ... deletes them."""
    path.mkdir(exist_ok=True)
    config = {**config_to_hf(model.cfg), **config}
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    tied = model.cfg.tie_embeddings
    write_safetensors(path / "model.safetensors", {rename(k): w for k, w in model.state_dict().items()
                                                   if not (tied and k == "lm_head.weight")})
    return path


def uncached_greedy(model, prompt, n, weak=None, lam=1.0):
    tokens = list(prompt)
    for _ in range(n):
        z = model.logits(torch.tensor([tokens]))[0, -1]
        if weak is not None:
            z = lam * z + (1 - lam) * weak.logits(torch.tensor([tokens]))[0, -1]
        tokens.append(int(z.argmax()))
    return tokens[len(prompt):]


PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3], [5, 5], [9, 8, 7, 6, 5, 4], [2, 2, 2]]


@pytest.mark.parametrize("name", CONFIGS)
def test_batched_cached_decoding_equals_one_by_one_uncached(name):
    """Bug: padding that leaks into attention, is_causal with a cache (aligned top-left), wrong positions after prefill."""
    model = tiny(**CONFIGS[name])
    with torch.no_grad():
        want = [uncached_greedy(model, p, 12) for p in PROMPTS]
    assert len({tuple(w) for w in want}) > 2, "the model is too dull to tell a bug"
    assert model.generate(PROMPTS, 12) == want
    assert [model.generate([p], 12)[0] for p in PROMPTS] == want


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_under_autocast_equals_uncached_decoding_under_autocast(name):
    """Bug: a cache in fp32 that refuses bf16 keys, QK-norm that leaves q in fp32 beside a bf16 v: the default on a GPU."""
    model = tiny(**CONFIGS[name])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = [uncached_greedy(model, p, 4) for p in PROMPTS]
        got = model.generate(PROMPTS, 4)
    same = sum(a == b for x, y in zip(got, want) for a, b in zip(x, y))
    assert same >= 15, (got, want)            # of 20: bf16 rounds a batch and a row differently, and one token moves the rest


def test_stop_ids_end_their_row_and_no_other():
    """Bug: a stop token kept in the output, or one row's end that shifts the caches of the others."""
    model = tiny()
    full = model.generate(PROMPTS, 20)
    for stop in sorted({t for row in full for t in row}):
        want = [row[:row.index(stop)] if stop in row else row for row in full]
        assert model.generate(PROMPTS, 20, stop_ids=[stop]) == want


def test_fused_decoding_mixes_the_logits_of_both_models_at_each_step():
    """Bug: branches swapped, lam on the wrong side, one branch decoding without the tokens that the mix has chosen."""
    strong, weak = tiny(0), tiny(1)
    for lam in (0.0, 0.3, 0.5, 1.0, 1.5):
        with torch.no_grad():
            want = [uncached_greedy(strong, p, 8, weak, lam) for p in PROMPTS]
        assert strong.generate(PROMPTS, 8, weak=weak, lam=lam) == want


def test_sampling_is_a_function_of_seed_and_prompt_not_of_the_batch():
    """Bug: one generator for the whole batch, so that scores change with batch size and order."""
    model = tiny(scale=2.0)
    seeds = [11, 12, 13, 14, 15]
    together = model.generate(PROMPTS, 10, temperature=1.0, seed=seeds)
    assert [model.generate([p], 10, temperature=1.0, seed=[s])[0] for p, s in zip(PROMPTS, seeds)] == together
    stop = together[0][3]                                 # the first row leaves the batch: the others keep their draws
    cut = [row[:row.index(stop)] if stop in row else row for row in together]
    assert model.generate(PROMPTS, 10, temperature=1.0, seed=seeds, stop_ids=[stop]) == cut
    back = model.generate(PROMPTS[::-1], 10, temperature=1.0, seed=seeds[::-1])
    assert back[::-1] == together
    assert model.generate(PROMPTS, 10, temperature=1.0, seed=7) == model.generate(PROMPTS, 10, temperature=1.0, seed=7)
    assert model.generate(PROMPTS, 10, temperature=1.0, seed=7) != model.generate(PROMPTS, 10, temperature=1.0, seed=8)


def test_sampling_frequencies_are_those_of_the_softmax():
    """Bug: temperature applied upside down, an off-by-one in the inverse CDF (then every frequency moves by one id)."""
    model, n, temperature = tiny(scale=2.0), 4000, 0.7
    with torch.no_grad():
        p = torch.softmax(model.logits(torch.tensor([[4, 2]]))[0, -1].double() / temperature, -1)
    drawn = torch.tensor(model.generate([[4, 2]] * n, 1, temperature=temperature, seed=0)).flatten()
    seen = torch.bincount(drawn, minlength=23).double() / n
    assert ((seen - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


@pytest.mark.parametrize("prompts, n, words", [([[1], []], 3, "prompt 1 is empty"), ([[1] * 60], 5, "max_seq_len 64")])
def test_impossible_prompts_are_refused(prompts, n, words):
    """Bug: an empty prompt read as position -1, a RoPE table read past its end."""
    with pytest.raises(ValueError, match=words):
        tiny().generate(prompts, n)


@pytest.mark.parametrize("how", (dict(temperature=-1.0), dict(temperature=1.0, seed=[1, 2])))
def test_impossible_sampling_is_refused(how):
    """Bug: a variable that was never set, a seed for the wrong prompt."""
    with pytest.raises(ValueError, match="expected temperature >= 0 and one seed or 1"):
        tiny().generate([[1]], 3, **how)


def test_no_prompts_and_no_tokens():
    """Bug: max() of nothing."""
    assert tiny().generate([], 5) == [] and tiny().generate([[1], [2]], 0) == [[], []]


@pytest.mark.parametrize("bad", (dict(dim=30, n_heads=4), dict(n_heads=4, n_kv_heads=3), dict(dim=12, n_heads=4),
                                 dict(rope_low=4.0), dict(dim=32.0), dict(n_heads=0), dict(vocab_size="97"),
                                 dict(max_seq_len=None)))
def test_impossible_shapes_are_refused(bad):
    """Bug: a view() error from the middle of the first forward pass."""
    with pytest.raises(ValueError, match="model: "):
        GPTConfig(**bad)


def test_flops_equal_the_matrix_products_counted_by_torch():
    """Bug: a hand formula that forgets the head, a projection or grouped queries."""
    from torch.utils.flop_counter import FlopCounterMode
    model = tiny(n_heads=4, n_kv_heads=2, head_dim=12)
    x, k = torch.zeros(3, 16, dtype=torch.long), 7
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.lm_head(model(x)[0, :k])
    # torch counts all T*T pairs, the causal half and the other
    assert counter.get_total_flops() == model.forward_flops(3 * 16, 3 * 16 * 16, k)


def test_checkpoint_round_trip_and_contents(tmp_path):
    """Bug: a tied head saved twice and loaded apart, meta lost, a file that needs pickle to read."""
    model = tiny(qk_norm=True)
    save_checkpoint(tmp_path / "a.pt", model, step=3, commit="abc")
    back, meta = load_checkpoint(tmp_path / "a.pt")
    assert meta["step"] == 3 and meta["commit"] == "abc" and back.cfg == model.cfg
    assert back.lm_head.weight is back.embed_tokens.weight
    x = torch.arange(9)[None]
    assert torch.equal(back.logits(x), model.logits(x))


def test_crash_while_saving_leaves_the_old_checkpoint(tmp_path):
    """Bug: a half-written file in the place of a whole one."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, tiny(), step=1)

    def crash(f):
        f.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, crash)
    assert load_checkpoint(path)[1]["step"] == 1 and os.listdir(tmp_path) == ["a.pt"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_foreign_files_are_refused_and_never_run(tmp_path, monkeypatch):
    """Bug: torch.load that unpickles whatever it is given."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.zeros(2)}, "other.pt")
    torch.save(torch.zeros(2), "tensor.pt")
    torch.save({"format": "wmss-checkpoint-1", "model": {}}, "half.pt")
    torch.save(Bomb(), "bomb.pt")
    with open("text.pt", "w") as f:
        f.write("hello")
    with open("pickle.pt", "wb") as f:
        pickle.dump(Bomb(), f)
    open("empty.pt", "w").close()
    for name in ("other.pt", "tensor.pt", "half.pt", "bomb.pt", "text.pt", "pickle.pt", "empty.pt"):
        with pytest.raises(SystemExit, match=f"{name} is not a whole wmss-checkpoint-1"):
            load_checkpoint(name)
    assert not os.path.exists("bomb-went-off")
    with pytest.raises(SystemExit, match="found none"):
        load_checkpoint("nowhere.pt")


def test_a_checkpoint_cut_anywhere_is_refused_in_one_sentence(tmp_path):
    """Bug: a traceback from the archive reader, different for each place where a copy was cut short."""
    save_checkpoint(tmp_path / "a.pt", tiny(), tokenizer="aaaa")
    data = (tmp_path / "a.pt").read_bytes()
    for cut in (0, 1, 1000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:cut])
        with pytest.raises(SystemExit, match="cut.pt is not a whole wmss-checkpoint-1"):
            load_checkpoint(tmp_path / "cut.pt", tokenizer="aaaa")


def test_tensors_that_do_not_fit_and_foreign_tokenizers_are_refused(tmp_path):
    """Bug: token ids of another vocabulary read as if they were ours."""
    model = tiny()
    save_checkpoint(tmp_path / "a.pt", model, tokenizer="aaaa")
    with pytest.raises(SystemExit, match="trained with tokenizer aaaa"):
        load_checkpoint(tmp_path / "a.pt", tokenizer="bbbb")
    for name, value in (("dim", 64), ("n_heads", 5), ("n_layers", 3)):
        before = getattr(model.cfg, name)
        setattr(model.cfg, name, value)
        save_checkpoint(tmp_path / "b.pt", model, tokenizer="aaaa")
        setattr(model.cfg, name, before)
        with pytest.raises(SystemExit, match="do not fit"):
            load_checkpoint(tmp_path / "b.pt")


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face folders


def tensors_of(path):
    return {k: read() for k, (_, read) in read_header(path).items()}


def reword(change):
    """A refusal made by other entries in config.json."""
    return lambda path, model: folder(path, model, **change)


def retensor(change):
    """A refusal made by other tensors: change(tensors) edits the dict that is written."""
    def make(path, model):
        folder(path, model)
        tensors = tensors_of(path / "model.safetensors")
        change(tensors)
        write_safetensors(path / "model.safetensors", tensors)
    return make


def rebyte(change):
    """A refusal made by other bytes in the safetensors file."""
    def make(path, model):
        folder(path, model)
        file = path / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
    return make


def shards(path, model):
    folder(path, model)
    os.rename(path / "model.safetensors", path / "model-00001-of-00002.safetensors")
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (path / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=dict(zip("ab", files)))))


def remove(name):
    def make(path, model):
        folder(path, model)
        os.remove(path / name)
    return make


def rewrite(name, text):
    def make(path, model):
        folder(path, model)
        (path / name).write_text(text)
    return make


NORM, EMBED, O_BIAS = "model.norm.weight", "model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.bias"
REFUSED = {
    "another type": (reword(dict(model_type="mistral")), "model_type 'mistral' is not one that we have .llama, qwen2, qwen3.$"),
    "no type": (reword(dict(model_type=...)), "model_type None"),
    "Gemma": (reword(dict(model_type="gemma3_text")), "gemma3_text.*SentencePiece"),
    "GELU": (reword(dict(hidden_act="gelu")), "hidden_act 'gelu'"),
    "bias on o_proj": (reword(dict(attention_bias=True)), "attention_bias"),
    "bias on o_proj, qwen3": (reword(dict(model_type="qwen3", attention_bias=True)), "attention_bias"),
    "bias in the MLP": (reword(dict(mlp_bias=True)), "mlp_bias"),
    "sliding windows": (reword(dict(model_type="qwen2", use_sliding_window=True)), "sliding windows"),
    "a sliding layer": (reword(dict(model_type="qwen2", layer_types=["full_attention", "sliding_attention"])),
                        "sliding windows"),
    "quantised": (reword(dict(quantization_config=dict(quant_method="awq"))), "quantization_config"),
    "yarn": (reword(dict(rope_scaling=dict(rope_type="yarn", factor=4.0))), "rope_type 'yarn'"),
    "linear, in the oldest layout": (reword(dict(rope_scaling=dict(type="linear", factor=4.0))), "rope_type 'linear'"),
    "dynamic": (reword(dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4))), "rope_type 'dynamic'"),
    "longrope": (reword(dict(rope_parameters=dict(rope_type="longrope", rope_theta=1e4))), "rope_type 'longrope'"),
    "half of a llama3 rope": (reword(dict(rope_scaling=dict(rope_type="llama3", factor=8.0))),
                              "lacks rope_scaling.low_freq_factor, rope_scaling.high"),
    "partial rotation": (reword(dict(partial_rotary_factor=0.5)), "partial_rotary_factor"),
    "no width": (reword(dict(hidden_size=...)), "lacks hidden_size"),
    "no kv heads, which qwen2 takes for 32": (reword(dict(model_type="qwen2", num_key_value_heads=...)), "num_key_value_heads"),
    "a word for a number": (reword(dict(vocab_size="many")), "vocab_size .*'many'"),
    "a list for a type": (reword(dict(model_type=["llama"])), "value of another kind"),
    "a word for an object": (reword(dict(rope_scaling="llama3")), "value of another kind"),
    "no layers": (reword(dict(num_hidden_layers=-1)), "n_layers should be at least 1"),
    "more layers than tensors": (reword(dict(num_hidden_layers=3)), "layers.2.input_layernorm.weight is missing.* and 6 more"),
    "biases left out": (reword(dict(model_type="qwen2")), "layers.0.self_attn.q_proj.bias is missing"),
    "untied, no head": (reword(dict(tie_word_embeddings=False)), "lm_head.weight is missing"),
    "a wrong shape": (reword(dict(intermediate_size=64)), r"mlp.gate_proj.weight is \(96, 32\), expected \(64, 32\)"),
    "a missing tensor": (retensor(lambda t: t.pop(NORM)), "norm.weight is missing"),
    "an unexpected tensor": (retensor(lambda t: t.update({"model.mtp.weight": torch.ones(2)})), "mtp.weight is unexpected"),
    "a bias on o_proj, not in config.json": (retensor(lambda t: t.update({O_BIAS: t[NORM]})), "o_proj.bias is unexpected"),
    "a tensor twice": (retensor(lambda t: t.update({"norm.weight": t[NORM]})), "norm.weight is there twice"),
    "another head though tied": (retensor(lambda t: t.update({"lm_head.weight": t[EMBED] + 1})), "differs from"),
    "cut in the weights": (rebyte(lambda b: b[:-1]), "model.safetensors is [0-9,]+ bytes, its header speaks of .* cut short"),
    "cut in the header": (rebyte(lambda b: b[:100]), "model.safetensors has no whole safetensors header"),
    "too long": (rebyte(lambda b: b + b"!"), "model.safetensors is [0-9,]+ bytes, its header speaks of"),
    "empty": (rebyte(lambda b: b""), "model.safetensors has no whole safetensors header"),
    "text": (rebyte(lambda b: b"version https://git-lfs"), "model.safetensors has no whole safetensors header"),
    "fp8": (rebyte(lambda b: b.replace(b'"F32"', b'"F8 "', 1)), "of dtype F8"),
    "a shape that its bytes are not": (rebyte(lambda b: b.replace(b"[23, 32]", b"[23, 31]")),
                                       "does not have the bytes of its shape"),
    "a missing shard": (shards, "1 of 2 shards are missing: model-00002-of-00002.safetensors"),
    "no weights": (remove("model.safetensors"), "expected model.safetensors or model.safetensors.index.json, found neither"),
    "no config": (remove("config.json"), "config.json cannot be read"),
    "a broken config": (rewrite("config.json", '{"model_type": '), "config.json cannot be read"),
    "a config that is a list": (rewrite("config.json", "[]"), "config.json is no JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_model_does_not_compute_is_refused_by_name(name, tmp_path, monkeypatch):
    """Bug: a model that loads, runs, and computes something else than the network that was released."""
    make, words = REFUSED[name]
    make(tmp_path / "m", tiny())
    if name != "another head though tied":                # all others are told from headers, before a weight is read
        monkeypatch.setattr(model_file, "_read_tensor", None)
    with pytest.raises(SystemExit, match="(?s)^checkpoint: .*" + words):
        GPT.from_pretrained(tmp_path / "m")


def test_what_other_programs_leave_in_a_folder_is_read(tmp_path):
    """Bug: a released model refused for a buffer, for a tied head that is stored too, or for names without the prefix."""
    model = tiny()
    folder(tmp_path, model, rename=lambda k: k)
    tensors = tensors_of(tmp_path / "model.safetensors")
    tensors |= {"lm_head.weight": tensors["embed_tokens.weight"], "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    back = GPT.from_pretrained(tmp_path)
    assert back.lm_head.weight is back.embed_tokens.weight and back.cfg == model.cfg
    x = torch.arange(9)[None]
    assert torch.equal(back.logits(x), model.logits(x))


def test_safetensors_files_are_those_of_the_package(tmp_path):
    """Bug: a file that only we can read, or theirs misread: offsets from the wrong origin, dtypes mixed up."""
    package = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.arange(3.0).bfloat16(), "b": torch.randn(2, 5), "c": torch.randn(4, 1, 3).half(),
               "d": torch.randn(7).double()}
    write_safetensors(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes()[0] % 8 == 0                       # mapped, the tensors lie aligned
    package.save_file(tensors, tmp_path / "theirs")
    for found in (package.load_file(tmp_path / "ours"), tensors_of(tmp_path / "theirs")):
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[k], w) and found[k].dtype == w.dtype for k, w in tensors.items())


def test_safetensors_bytes_are_read_by_hand(tmp_path):
    """Bug: the same, on a machine without the package."""
    header = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}'
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\x40\xc0")
    (name, (shape, read)), = read_header(tmp_path / "f").items()
    assert (name, shape, read().tolist(), read().dtype) == ("w", (2, 1), [[1.0], [-3.0]], torch.bfloat16)


def test_a_name_on_the_hub_is_refused_in_one_sentence_where_there_is_no_hub(tmp_path, monkeypatch):
    """Bug: a page of traceback for a typing error; a local path that was mistyped, sent to the network."""
    monkeypatch.chdir(tmp_path)
    import huggingface_hub
    asked = []

    def offline(name, allow_patterns):
        asked.append(name)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(SystemExit, match="no nobody/no-such-model here, and the hub did not give it .LocalEntryNotFoundError"):
        GPT.from_pretrained("nobody/no-such-model")
    os.mkdir("out")
    for typo in ("out/toy", "models/wmss.pt", "wmss.pt", "a/b/c", "/etc/nothing"):
        with pytest.raises(SystemExit, match=f"at {typo}, found none"):
            read_config(typo)
    assert asked == ["nobody/no-such-model"]
    folder(tmp_path / "cached", tiny())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path / "cached"))
    assert GPT.from_pretrained("somebody/a-model").cfg == tiny().cfg


def test_a_loaded_pt_is_trained_without_changing_its_file(tmp_path):
    """Bug: a mapping of the file that writes through; or a file that grows with each save, as a whole mapping is pickled."""
    save_checkpoint(tmp_path / "a.pt", tiny())
    before = (tmp_path / "a.pt").read_bytes()
    model, _ = load_checkpoint(tmp_path / "a.pt")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert (tmp_path / "a.pt").read_bytes() == before
    save_checkpoint(tmp_path / "b.pt", model)
    assert os.path.getsize(tmp_path / "b.pt") == len(before)


def test_folders_carry_their_tokenizer_into_meta(tmp_path, monkeypatch):
    """Bug: a folder whose token ids are taken for another's."""
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda files: toy_encoding())
    folder(tmp_path, tiny(vocab_size=97))
    assert read_config(tmp_path)[1] == dict(tokenizer=None, tokenizer_files={}, config={})
    with pytest.raises(SystemExit, match="trained with tokenizer None, this run uses 0123"):
        load_checkpoint(tmp_path, tokenizer="0123")
    files = {"tokenizer.json": "{}", "tokenizer_config.json": "{ }", "chat_template.jinja": "{{ x }}"}
    for name, text in {**files, "merges.txt": "a b"}.items():
        (tmp_path / name).write_text(text)
    mark = fingerprint(toy_encoding())
    for meta in (read_config(tmp_path)[1], load_checkpoint(tmp_path, tokenizer=mark)[1]):
        assert meta == dict(tokenizer=mark, tokenizer_files=files, config={})
    with pytest.raises(SystemExit, match=f"trained with tokenizer {mark}, this run uses 0123"):
        load_checkpoint(tmp_path, tokenizer="0123")


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_refused(tmp_path, monkeypatch):
    """Bug: an index out of range in the middle of an epoch, on a GPU an assertion that names nothing."""
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda files: toy_encoding())
    (folder(tmp_path, tiny(vocab_size=96)) / "tokenizer.json").write_text("{}")
    for load in (read_config, load_checkpoint, lambda path: export(path, tmp_path / "out")):
        with pytest.raises(SystemExit, match="^checkpoint: .*: tokenizer.json has 97 ids, the model embeds 96; "):
            load(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# export

TOY = dict(tokenizer=fingerprint(toy_encoding()))


@pytest.fixture
def toy_files(monkeypatch):
    """The tokenizer's part of a folder, which is not what these tests are about."""
    files = {"tokenizer.json": "{}", "generation_config.json": '{"top_k": 20, "eos_token_id": 5}'}
    monkeypatch.setattr(tokenizer, "tokenizer_files", lambda enc: files)
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda files: toy_encoding())


EXPORTS = {
    "llama": dict(n_heads=4, n_kv_heads=2),
    "llama, untied, own head_dim": dict(head_dim=12, tie_embeddings=False),
    "llama, rope scaled": dict(rope_theta=500.0, rope_factor=8.0, rope_original_len=24, head_dim=16),
    "qwen2": dict(qkv_bias=True, n_kv_heads=2, rope_theta=1e5, norm_eps=1e-5),
    "qwen3": dict(qk_norm=True, head_dim=12),
}


@pytest.mark.parametrize("shard_bytes", (10**9, 10_000))
@pytest.mark.parametrize("name", EXPORTS)
def test_exported_models_come_back_and_are_the_same_in_transformers(name, shard_bytes, tmp_path, toy_files):
    """Bug: "no extra inference cost" that nobody can load, or that computes something else where it is loaded."""
    model, x = tiny(vocab_size=97, **EXPORTS[name]), torch.randint(0, 97, (2, 50))
    save_checkpoint(tmp_path / "a.pt", model, **TOY)
    export(tmp_path / "a.pt", tmp_path / "hf", shard_bytes=shard_bytes)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    written = [k for file in (tmp_path / "hf").glob("*.safetensors") for k in read_header(file)]
    assert len(written) == len(set(written)) == len(list(model.parameters()))
    back = GPT.from_pretrained(tmp_path / "hf")
    assert back.cfg == model.cfg
    assert all(torch.equal(w, back.state_dict()[k]) for k, w in model.state_dict().items())
    hf = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert hf.dtype == torch.float32 and hf.generation_config.eos_token_id == 96 and hf.generation_config.top_k == 20
    with torch.no_grad():
        close(hf(x).logits, model.logits(x))


def test_export_takes_a_dtype_and_a_folder(tmp_path, toy_files, capsys):
    """Bug: --dtype that converts config.json only; a folder that cannot be converted again."""
    save_checkpoint(tmp_path / "a.pt", tiny(vocab_size=97), **TOY)
    main(["export", str(tmp_path / "a.pt"), str(tmp_path / "half"), "--dtype", "bf16"])
    assert "half: config.json, generation_config.json, model.safetensors, tokenizer.json" in capsys.readouterr().out
    main(["export", str(tmp_path / "half"), str(tmp_path / "same")])
    main(["export", str(tmp_path / "half"), str(tmp_path / "full"), "--dtype", "fp32"])
    for name, dtype in dict(half=torch.bfloat16, same=torch.bfloat16, full=torch.float32).items():
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["torch_dtype"], config["eos_token_id"]) == (str(dtype).removeprefix("torch."), 96)
        assert {read().dtype for _, read in read_header(tmp_path / name / "model.safetensors").values()} == {dtype}


def test_all_that_ends_generation_is_exported(tmp_path, toy_files, monkeypatch):
    """Bug: a chat model that stops at <|im_end|> here and babbles on in vLLM."""
    enc = tokenizer.Tokenizer("two", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<e>": 1, "<s>": 2, "<b>": 3},
                         end="<e>", stops=("<s>",), bos="<b>")
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda files: enc)
    save_checkpoint(tmp_path / "a.pt", tiny(), tokenizer=fingerprint(enc), tokenizer_files={"tokenizer.json": "{}"})
    export(tmp_path / "a.pt", tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        ids = json.loads((tmp_path / "hf" / name).read_text())
        assert (ids["eos_token_id"], ids["bos_token_id"]) == ([1, 2], 3)


def test_failed_exports_leave_nothing(tmp_path, toy_files, monkeypatch):
    """Bug: half a model under a good name; an export into somebody's folder."""
    pt, out = tmp_path / "a.pt", tmp_path / "hf"
    for words, kw, meta in (("qkv_bias together with qk_norm", dict(qkv_bias=True, qk_norm=True), TOY),
                            ("carries no tokenizer files", dict(), dict(tokenizer="0123")),
                            ("carries no tokenizer files", dict(), {})):
        save_checkpoint(pt, tiny(vocab_size=97, **kw), **meta)
        with pytest.raises(SystemExit, match=words):
            export(pt, out)
    save_checkpoint(pt, tiny(vocab_size=97), **TOY)
    with pytest.raises(SystemExit, match="found none"):
        export(tmp_path / "b.pt", out)
    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(model_file, "write_atomically", lambda path, write: (_ for _ in ()).throw(OSError("disk full")))
        export(pt, out, shard_bytes=10_000)
    assert os.listdir(tmp_path) == ["a.pt"]
    out.mkdir()
    export(pt, out)                                       # an empty folder is filled
    before = {p: p.read_bytes() for p in out.iterdir()}
    for there in (out, pt):
        with pytest.raises(SystemExit, match="exists and is not an empty folder"):
            export(pt, there)
    assert {p: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_end_to_end_give_what_each_row_alone_gives(name):
    """Bug: a packed row that sees its neighbour, positions that run on across rows, a gradient lost where buckets are joined."""
    model, g = tiny(scale=3.0, **CONFIGS[name]), torch.Generator().manual_seed(1)
    x = [torch.randint(23, shape, generator=g) for shape in ((2, 9), (3, 4), (1, 1), (2, 17))]
    grads, outs = [], []
    for forward in (model, lambda buckets: torch.cat([model(row[None])[0] for bucket in buckets for row in bucket])):
        model.zero_grad()
        h = forward(x)
        (h * torch.linspace(-1, 1, h.numel()).view(h.shape)).sum().backward()
        outs.append(h.detach())
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_one_compiled_graph_serves_all_layers_models_and_buckets(monkeypatch):
    """Bug: compiled layers that compute something else, or are compiled again for each layer, model or number of buckets."""
    from torch._dynamo.utils import counters
    plain, compile_ = [tiny(seed) for seed in (0, 1)], torch.nn.Module.compile
    batches = [[torch.randint(23, (B, 10 - B)) for B in range(1, n)] for n in range(2, 8)]
    want = [m(x) for m in plain for x in batches]
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_(self, backend="eager", **how))   # inductor takes 40 s
    monkeypatch.setattr(model_file.Rows, "attend", model_file.Rows.attend)       # which compile_layers() replaces: put back afterwards
    torch.compiler.reset()
    counters.clear()
    for m in plain:
        m.compile_layers()
    torch.testing.assert_close([m(x) for m in plain for x in batches], want)
    assert 0 < counters["stats"]["unique_graphs"] <= 4             # before and after attention, for static and for changing P
