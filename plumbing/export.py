"""A checkpoint -> a Hugging Face folder that transformers and vLLM load.

    python -m plumbing.export out/toy/wmss.pt folder
    python -m plumbing.export out/mine/wmss.pt folder --dtype bf16
"""

import json
import os
import shutil

import torch

from model import GPT
from plumbing import hf
from plumbing.checkpoints import Checkpoint
from plumbing.cli import parser_of, program
from plumbing.files import write_text
from plumbing.tasks import tokenizer_of
from plumbing.tokenizer import fingerprint, tokenizer_files

DTYPES = dict(keep=None, fp32=torch.float32, bf16=torch.bfloat16)


def export(source, folder, dtype=None, shard_bytes=5_000_000_000):
    """Write a Hugging Face folder: safetensors, config.json, generation_config.json, the tokenizer.

    source: whatever load_checkpoint takes. dtype: None keeps the file's. shard_bytes: weights above
    it are cut into several files with an index. The folder is there as a whole or not at all.
    """
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise ValueError(f"export: {folder} exists and is not an empty folder; name another")
    opened = Checkpoint(GPT, source)
    config = hf.config_to_hf(opened.model.cfg)
    enc = tokenizer_of(opened.meta)
    if not opened.meta.get("tokenizer_files") and opened.meta["tokenizer"] != fingerprint(enc):
        raise ValueError(f"export: {opened.path} carries no tokenizer files, and its tokens are "
                         "not the built-in tasks'; nobody could read what the model writes")
    weights = opened.read(dtype, "cpu").state_dict()
    if opened.model.cfg.tie_embeddings:
        del weights["lm_head.weight"]
    files = _text_files(enc, config, weights["embed_tokens.weight"].dtype)
    weights = {k if k.startswith("lm_head.") else f"model.{k}": w for k, w in weights.items()}

    from huggingface_hub import save_torch_state_dict  # comes with `datasets`
    folder = os.path.realpath(folder)                      # a/ and a link to a are one place
    half = f"{folder}.tmp{os.getpid()}"
    try:
        os.makedirs(half)
        save_torch_state_dict(weights, half, max_shard_size=shard_bytes)
        for name, text in files.items():
            write_text(os.path.join(half, name), text)
        for name in os.listdir(half):
            path = os.path.join(half, name)     # safetensors makes it for its owner alone
            shutil.copymode(os.path.join(half, "config.json"), path)
            with open(path, "rb+") as f:
                os.fsync(f.fileno())
        os.replace(half, folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _text_files(enc, config, dtype):
    """The folder's files besides the weights: name -> text."""
    files = tokenizer_files(enc)
    contents = {}
    if "tokenizer.json" in files:
        # A class of its own, GPT2Tokenizer say, would rebuild the splits of tokenizer.json by
        # guess: transformers 5.23 then leaves SmolLM2's numbers whole (83 GSM8K rows differ).
        # Without a file it guesses the class, and the token that ends a text.
        contents["tokenizer_config.json"] = {
            "eos_token": enc.decode([enc.end_id]),
            **json.loads(files.get("tokenizer_config.json", "{}")),
            "tokenizer_class": "PreTrainedTokenizerFast"}
    ends = enc.stop_ids if len(enc.stop_ids) > 1 else enc.end_id
    ids = dict(bos_token_id=enc.bos_id, eos_token_id=ends)
    contents["config.json"] = {**config, **ids, "torch_dtype": str(dtype).removeprefix("torch.")}
    generation = json.loads(files.get("generation_config.json", "{}"))
    contents["generation_config.json"] = {**generation, **ids}
    return files | {name: json.dumps(c, indent=2) for name, c in contents.items()}


@program("export")
def main(argv=None):
    parser = parser_of(__doc__, "python -m plumbing.export")
    parser.add_argument("checkpoint", help="a .pt of out/<name>/, or a Hugging Face folder")
    parser.add_argument("folder", help="the folder to write; must not exist, or be empty")
    parser.add_argument("--dtype", choices=DTYPES, default="keep",
                        help="of the weights (%(default)s)")
    args = parser.parse_args(argv)
    export(args.checkpoint, args.folder, DTYPES[args.dtype])
    print(f"wrote {args.folder}: " + ", ".join(sorted(os.listdir(args.folder))))


if __name__ == "__main__":
    main()
