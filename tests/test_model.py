"""model.py against a float64 reference, transformers, and decoding one token at a time without a cache."""

import os
import pickle

import numpy as np
import pytest
import torch
import transformers

from model import GPT, GPTConfig, load_checkpoint, save_checkpoint, write_atomically

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


HF = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, dict()),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, dict(qkv_bias=True)),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, dict(qk_norm=True, head_dim=12)),
}


@pytest.mark.parametrize("tie", (True, False))
@pytest.mark.parametrize("kind", HF)
def test_logits_equal_transformers(kind, tie):
    """Bug: a network that agrees with its own authors' reading of the paper but not with the released weights' code."""
    config, cls, ours = HF[kind]
    torch.manual_seed(0)
    hf = cls(config(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    intermediate_size=64, max_position_embeddings=64, head_dim=ours.get("head_dim", 8), rms_norm_eps=1e-6,
                    rope_parameters=dict(rope_type="default", rope_theta=10_000.0), tie_word_embeddings=tie)).eval()
    with torch.no_grad():
        for p in hf.parameters():
            p.add_(0.3 * torch.randn_like(p))
    model = GPT(GPTConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, max_seq_len=64,
                          tie_embeddings=tie, **ours))
    model.load_state_dict({k.removeprefix("model."): v for k, v in hf.state_dict().items()})
    x = torch.randint(0, 50, (2, 19))
    with torch.no_grad():
        want = hf(x).logits
        torch.testing.assert_close(model.logits(x), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


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


@pytest.mark.parametrize("bad", (dict(dim=30, n_heads=4), dict(n_heads=4, n_kv_heads=3), dict(dim=12, n_heads=4)))
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
