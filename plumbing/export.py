"""A checkpoint -> a Hugging Face folder that transformers and vLLM load.

    python -m plumbing.export out/toy/wmss.pt folder
    python -m plumbing.export out/mine/wmss.pt folder --dtype bf16
"""

import argparse
import json
import os
import shutil

import torch

from model import GPT
from plumbing import hf, tokenizer
from plumbing.checkpoints import check_tokenizer, open_checkpoint, read_weights
from plumbing.cli import program
from plumbing.files import write_text

DTYPES = dict(keep=None, fp32=torch.float32, bf16=torch.bfloat16)


def export(source, folder, dtype=None, shard_bytes=5_000_000_000):
    """Write a Hugging Face folder: safetensors, config.json, generation_config.json, the tokenizer.

    source: whatever load_checkpoint takes. dtype: None keeps the file's. shard_bytes: weights above
    it are cut into several files with an index. The folder is written beside its place and renamed:
    it is there as a whole or not at all. Raises ValueError if it exists with something in it, if no
    model type has the config's flags, or if nobody knows what the checkpoint's tokens mean.
    """
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise ValueError(f"export: {folder} exists and is not an empty folder; name another")
    opened = open_checkpoint(GPT, source)
    check_tokenizer(opened)
    enc = _tokenizer_of(opened)
    try:
        config = hf.config_to_hf(opened.model.cfg)
    except ValueError as e:
        raise ValueError(f"export: {opened.path}: {e}") from None
    model = read_weights(opened, dtype, "cpu")
    files = _text_files(enc, config, model.embed_tokens.weight.dtype)

    weights = {}
    for name, w in model.state_dict().items():
        if name == "lm_head.weight" and model.cfg.tie_embeddings:
            continue
        weights[name if name.startswith("lm_head.") else f"model.{name}"] = w.contiguous()
    shards = _shards(weights, shard_bytes)
    if len(shards) > 1:
        weight_map = {key: name for name, shard in shards.items() for key in shard}
        size = sum(w.nbytes for w in weights.values())
        files[hf.INDEX] = json.dumps(dict(metadata=dict(total_size=size), weight_map=weight_map),
                                     indent=2)

    folder = os.path.normpath(folder)                      # a/ and a are one place
    half = f"{folder}.tmp{os.getpid()}"
    try:
        os.makedirs(half)
        for name, shard in shards.items():
            write_safetensors(os.path.join(half, name), shard)
        for name, text in files.items():
            write_text(os.path.join(half, name), text)
        os.replace(half, folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _tokenizer_of(opened):
    trained_with = opened.meta["tokenizer"]
    if opened.meta.get("tokenizer_files") and trained_with:
        return tokenizer.load_tokenizer(opened.meta["tokenizer_files"])
    toy = tokenizer.toy_encoding()
    if trained_with == tokenizer.fingerprint(toy):
        return toy
    raise ValueError(f"export: {opened.path} carries no tokenizer files, and its tokens are not "
                     "the built-in tasks'; nobody could read what the exported model writes")


def _text_files(enc, config, dtype):
    """The folder's files besides the weights: name -> text."""
    files = dict(tokenizer.tokenizer_files(enc))
    if "tokenizer_config.json" in files:
        # A class of its own, GPT2Tokenizer say, would rebuild the splits of tokenizer.json by
        # guess: transformers 5.23 then leaves SmolLM2's numbers whole (83 GSM8K rows differ).
        content = json.loads(files["tokenizer_config.json"])
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        files["tokenizer_config.json"] = json.dumps(content, indent=2)
    ends = enc.stop_ids if len(enc.stop_ids) > 1 else enc.end_id
    ids = dict(bos_token_id=enc.bos_id, eos_token_id=ends)
    config = {**config, **ids, "torch_dtype": str(dtype).removeprefix("torch.")}
    files["config.json"] = json.dumps(config, indent=2)
    generation = {**json.loads(files.get("generation_config.json", "{}")), **ids}
    files["generation_config.json"] = json.dumps(generation, indent=2)
    return files


def _shards(weights, shard_bytes):
    """Weights cut, in their order, into files of at most shard_bytes: file's name -> weights."""
    shards = []
    room = 0
    for name, w in weights.items():
        if w.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = w
        room -= w.nbytes
    if len(shards) == 1:
        return {hf.WEIGHTS: shards[0]}
    n = len(shards)
    return {f"model-{i:05d}-of-{n:05d}.safetensors": s for i, s in enumerate(shards, 1)}


def write_safetensors(path, tensors):
    """{name: tensor} -> file, on the disk when this returns; transformers asks for "format"."""
    from safetensors.torch import save_file
    save_file(tensors, path, metadata={"format": "pt"})
    with open(path, "rb+") as f:
        os.fsync(f.fileno())


@program("export")
def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m plumbing.export", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a .pt of out/<name>/, or a Hugging Face folder")
    parser.add_argument("folder", help="the folder to write; must not exist, or be empty")
    parser.add_argument("--dtype", choices=DTYPES, default="keep",
                        help="of the weights (%(default)s)")
    args = parser.parse_args(argv)
    export(args.checkpoint, args.folder, DTYPES[args.dtype])
    print(f"wrote {args.folder}: " + ", ".join(sorted(os.listdir(args.folder))))


if __name__ == "__main__":
    main()
