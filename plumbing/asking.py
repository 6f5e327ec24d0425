"""What sample.py needs beside the models: its flags, what is typed, text in and out of tokens."""

import math

from plumbing.cli import parser_of


def flags(description, argv=None):
    """The command line of sample.py, checked; ValueError names what is wrong."""
    cli = parser_of(description)
    add = cli.add_argument
    add("checkpoint", help=".pt file of train_wmss.py, Hugging Face folder or hub name")
    add("prompts", nargs="*", help="none: they are typed, one a line")
    add("--weak", help="checkpoint of a weak model, to be compared and mixed in")
    add("--lam", type=float, default=0.5, help="weight of the strong logits in the mix (0.5)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--seed", type=int, default=0, help="of the draws")
    add("--max-new-tokens", type=int, help="default: 512, or as many as the model has room for")
    add("--stop", action="append", default=[], metavar="TEXT", help="it ends an answer; repeatable")
    add("--system", default="", help="system prompt of a conversation")
    add("--raw", action="store_true", help="continue the prompt as it is: no chat template")
    add("--device", default="auto", help="cuda, mps, cpu; auto: the first that is there")
    args = cli.parse_intermixed_args(argv)          # a prompt may stand behind a flag
    if not 0 <= args.temperature < math.inf:
        raise ValueError(f"--temperature: expected 0 or more, found {args.temperature}")
    if not math.isfinite(args.lam):
        raise ValueError(f"--lam: expected a number, found {args.lam}")
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: expected 1 or more, found {args.max_new_tokens}")
    if "" in [*args.prompts, *args.stop]:
        raise ValueError("expected a text in each prompt and each --stop, found an empty one")
    return args


def typed():
    """What is typed, line by line, until Ctrl-D or Ctrl-C."""
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def encode(enc, text, is_chat):
    """Token ids of a text; that of a chat spells special tokens, any other begins with bos.

    ValueError on a character that the vocabulary cannot spell: the ids would leave it out.
    """
    enc.check(text)
    if is_chat:
        return enc.encode(text, allowed_special="all", disallowed_special=())
    return ([] if enc.bos_id is None else [enc.bos_id]) + enc.encode_ordinary(text)
