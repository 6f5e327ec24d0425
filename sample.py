"""Ask a model: it continues a prompt, answers questions, or talks with you.

With --weak three models answer beside each other: the weak one, the strong one, and the fused one,
which mixes the logits of both (paper v2, eq. 5). A table shows where they disagree.

    python sample.py out/toy/wmss.pt "409+402:" "31*7:"
    python sample.py out/toy/sft.pt "409+402:" --weak out/toy/base.pt --lam 0.5
    python sample.py FOLDER "What is 7 times 8?" --temperature 0.7 --seed 1
    python sample.py FOLDER         # a conversation; an empty line starts another, Ctrl-D ends it
"""

import plumbing  # noqa: F401  (how threads wait; before torch)

# isort: split

import torch
from torch import Tensor

from eval_code import cut_at_stop
from model import GPT, load_checkpoint
from plumbing import asking
from plumbing.chat import render
from plumbing.cli import program
from plumbing.devices import pick
from plumbing.scoring import load_model
from plumbing.tokenizer import Tokenizer, fingerprint

DIFFERS = 0.1       # a token is listed if two models give it probabilities farther apart than this


@torch.inference_mode()
def answer_logits(model: GPT, prompt: list[int], answer: list[int]) -> Tensor:
    """The logits that the n tokens of an answer are drawn from -> (n, V) fp32, on the CPU."""
    x = torch.tensor([prompt + answer], device=model.cos.device)            # (1, T)
    return model.lm_head(model(x)[0, len(prompt) - 1:-1]).float().cpu()


def disagreement(enc: Tokenizer, prompt: list[int], answer: list[int], strong: GPT, weak: GPT,
                 lam: float) -> str:
    """The strong model's answer, read by all three: a line for each token on which they differ."""
    z_strong, z_weak = (answer_logits(model, prompt, answer) for model in (strong, weak))
    z_fused = lam * z_strong + (1 - lam) * z_weak                           # paper v2, eq. 5
    p = torch.stack([z_weak, z_strong, z_fused]).softmax(-1)                # (3, n, V)
    lines = ["probability of a token:    weak strong  fused"]
    for t, token in enumerate(answer):
        of_token = p[:, t, token]
        if of_token.max() - of_token.min() > DIFFERS:
            numbers = " ".join(f"{x:6.2f}" for x in of_token)
            text, before = enc.decode([token]), enc.decode(answer[:t])[-30:]
            line = f"  {text!r:22} {numbers}   after {before!r}"
            rival = int(p[0, t].argmax())
            if rival != token:
                line += f"; weak: {enc.decode([rival])!r} {p[0, t, rival]:.2f}"
            lines.append(line)
    none = f"no token's probability differs by more than {DIFFERS}"
    return "\n".join(lines) if len(lines) > 1 else none


@program("sample")
def main(argv: list[str] | None = None):
    args = asking.flags(__doc__, argv)
    device = pick(args.device)
    strong, enc, task = load_model(args.checkpoint, device)
    answering = {"": (strong, None)}                        # name: (model, what is mixed in)
    if args.weak:
        weak = load_checkpoint(args.weak, device, fingerprint(enc))[0].eval()
        # the strong one comes last: its answer is what the table and a conversation go on with
        answering = {"weak": (weak, None), "fused": (strong, weak), "strong": (strong, None)}
    room = min(model.cfg.max_seq_len for model, _ in answering.values())
    is_chat = task == "text" and not args.raw
    opening = [{"role": "system", "content": args.system}] if args.system else []

    def is_over(tokens):
        return any(stop in enc.decode(tokens) for stop in args.stop)

    talk = list(opening)
    for line in args.prompts or asking.typed():
        if args.prompts:                                    # each stands for itself
            print(f"> {line}")
        if args.prompts or not line:
            talk = list(opening)
        if not line:
            continue
        talk.append({"role": "user", "content": line})
        text = render(talk, enc, add_generation_prompt=True) if is_chat else line
        prompt = asking.encode(enc, text, is_chat)
        length = args.max_new_tokens or max(1, min(512, room - len(prompt)))
        for name, (model, mixed_in) in answering.items():
            (tokens,) = model.generate(
                [prompt], length, temperature=args.temperature, seed=args.seed, weak=mixed_in,
                lam=args.lam, ends=is_over, stop_ids=enc.stop_ids)
            answer = cut_at_stop(enc.decode(tokens), args.stop)
            print(f"{name:6} {answer}".lstrip())
        if args.weak:
            print(disagreement(enc, prompt, tokens, strong, weak, args.lam))
        talk.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
