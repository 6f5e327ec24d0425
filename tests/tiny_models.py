"""Shared by the tests of the model: tiny random models, ours and transformers', and folders."""

import json

import pytest
import torch
from safetensors.torch import save_file

from model import GPT, GPTConfig
from plumbing.hf import config_to_hf

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
    shape = dict(vocab_size=23, dim=32, n_layers=2, n_heads=4, max_seq_len=64)
    model = GPT(GPTConfig(**{**shape, **kw}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)).mul_(scale if p.dim() == 2 else 1)
    return model.eval()


LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=24,
)

PARITY = {
    "llama": ("Llama", dict()),
    "llama, tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama, own head_dim": ("Llama", dict(head_dim=12, num_key_value_heads=1)),
    "llama, rope scaled": ("Llama", dict(head_dim=16, rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(rms_norm_eps=1e-5)),
    "qwen2, tied": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3, own head_dim": ("Qwen3", dict(head_dim=12)),
    "qwen3, tied": (
        "Qwen3",
        dict(
            head_dim=8,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=1e6),
        ),
    ),
}


def theirs(name, folder=None, **save):
    """A random network of transformers, its biases and norms too; saved in folder."""
    transformers = pytest.importorskip("transformers")
    kind, kw = PARITY[name]
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    config = getattr(transformers, kind + "Config")(**{**sizes, **kw})
    hf = getattr(transformers, kind + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in hf.parameters():
            p.add_(0.3 * torch.randn_like(p))
    if folder:
        hf.save_pretrained(folder, **save)
    return hf


def close(ours, want):
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def as_released(name):
    return name if name == "lm_head.weight" else "model." + name


def folder(path, model, rename=as_released, **config):
    """model as a Hugging Face folder without a tokenizer.

    config overrides entries of config.json; the value ... deletes one.
    """
    path.mkdir(exist_ok=True)
    config = {**config_to_hf(model.cfg), **config}
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    tied = model.cfg.tie_embeddings
    save_file(
        {
            rename(k): w
            for k, w in model.state_dict().items()
            if not (tied and k == "lm_head.weight")
        },
        path / "model.safetensors",
    )
    return path


PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [3], [5, 5], [9, 8, 7, 6, 5, 4], [2, 2, 2]]
