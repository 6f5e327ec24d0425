"""Text of your own -> Samples: rows of files or of the hub, conversations, chat template, tokens.

    python -m plumbing.text --data a.jsonl --tokenizer FOLDER -n 3        # what has loss is marked
    python -m plumbing.text --data openai/gsm8k:main --tokenizer FOLDER

What a row may look like, and what --data may name: see load_text.
"""

import argparse
import array
import concurrent.futures
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

import data
from data import Sample
from plumbing import chat, files, tokenizer
from plumbing.chat import TEMPLATES, bos_token, compiled, pieces, template_source, with_template
from plumbing.cli import program
from plumbing.files import read_rows, write_atomically
from plumbing.tokenizer import Tokenizer, fingerprint, load_tokenizer, toy_encoding

# what rows call a role -> what templates call it
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant", "tool": "tool"}
REASONING = ("reasoning_content", "thinking", "reasoning")      # an answer's thoughts, in rows
LONG = ("drop", "truncate", "error")                            # what becomes of too long samples
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
CACHE = os.path.join("out", "cache")
CACHED_ROWS = 1000      # fewer rows than these are tokenised too fast for a cache to save time

# --------------------------------------------------------------------------------------------------
# a row -> a conversation


def _message(turn, column):
    """A message of a row -> one with role, content and reasoning_content as templates know them."""
    turn = {k: v for k, v in turn.items() if v is not None}     # a missing key, to parquet
    m = {"role": turn.pop("from", None), "content": turn.pop("value", None), **turn}
    if m["role"] not in ROLES:
        raise ValueError(f"unknown role {m['role']!r} in {column}; expected one of "
                         f"{', '.join(ROLES)}")
    m["role"] = ROLES[m["role"]]
    if m["content"] is None and m.get("tool_calls"):
        m["content"] = ""
    thoughts = [m[k] for k in REASONING if m.get(k)]
    if thoughts:                        # templates read one or the other name
        m = {"thinking": thoughts[0], **m, "reasoning_content": thoughts[0]}
    return m


def _check_message(m, control):
    """Raises ValueError on a message that cannot be rendered without doubt."""
    for text in (m["content"], m.get("reasoning_content", "")):
        if not isinstance(text, str):
            raise ValueError(f"expected text as the {m['role']}'s content, found "
                             f"{type(text).__name__} {text!r:.40}")
    found = control.search(str(m))      # in any key: templates read tool_calls, name and more
    if found:
        raise ValueError(f"the {m['role']}'s message spells the control token {found[0]}, which "
                         "would end or open a turn; take it out of the row")
    if m["role"] == "assistant" and not m["content"].strip() and not m.get("tool_calls"):
        raise ValueError("empty completion; remove the row")


def _conversation(row, prompt_column, completion_column, control):
    """A row -> (its messages, is it of the plain form prompt and completion?).

    control: pattern of the tokens that no message may spell. ValueError if the row has no known
    form.
    """
    column = None                                               # the one that holds messages
    if prompt_column:
        forms = [(prompt_column, completion_column)]
    else:
        forms = [("prompt", "completion"), ("question", "answer")]
        column = next((k for k in ("messages", "conversations") if row.get(k) is not None), None)
    pair = next((form for form in forms if all(row.get(k) is not None for k in form)), None)
    if row.get("tools"):
        raise ValueError("tools are not passed to the template; take that column out, or write "
                         "them into a system message")
    if column:
        turns = row[column]
        is_list = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
        if not is_list or not turns:
            raise ValueError(f"expected {column} to be a list of {{role, content}}, found "
                             f"{turns!r:.60}")
        messages = [_message(turn, column) for turn in turns]
    elif pair:
        messages = [{"role": "user", "content": row[pair[0]]},
                    {"role": "assistant", "content": row[pair[1]]}]
    else:
        wanted = [f"{a} and {b}" for a, b in forms]
        if not prompt_column:
            wanted.insert(0, "messages")
        found = ", ".join(k for k in row if row[k] is not None)
        raise ValueError(f"expected columns {' or '.join(wanted)}, found {found or 'none'}; "
                         "name yours with --prompt-column and --completion-column")
    for m in messages:
        _check_message(m, control)
    if not any(m["role"] == "assistant" for m in messages[1:]):
        raise ValueError("no assistant's turn that answers something, hence no loss token; "
                         "remove the row")
    return messages, pair == ("prompt", "completion") and not prompt_column


# --------------------------------------------------------------------------------------------------
# --data -> rows


class Source(NamedTuple):
    """What one --data names."""
    name: str           # the family of rows that name none
    stamp: object       # changes when the content does
    rows: Callable      # () -> iterator over ("file:line", row)


def _digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _read(path):
    """Yields ("file:line", row) of a file."""
    return _parquet(path) if path.endswith(".parquet") else read_rows(path)


def _read_all(paths):
    for path in paths:
        yield from _read(path)


def _parquet(path):
    import pyarrow.parquet  # datasets would read it too, but copy it to its own cache
    try:
        i = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000):
            for row in batch.to_pylist():
                i += 1
                yield f"{path}:{i}", row
    except (OSError, pyarrow.ArrowException) as e:
        raise ValueError(f"{path}: expected a parquet file, found {e}; check the path") from None


def _numbered(where, rows):
    """Yields ("where:1", row), ("where:2", row) and so on."""
    for i, row in enumerate(rows, 1):
        yield f"{where}:{i}", row


def _file(spec, name, path):
    if path != spec or not path.endswith(SUFFIXES):
        raise ValueError(f"--data {spec}: expected a file named {', '.join(SUFFIXES)}, and no "
                         ":CONFIG or @SPLIT after it")
    return Source(name, _digest(path), partial(_read, path))


def _folder(spec, name, path, config, split):
    import datasets
    from datasets.data_files import DataFilesDict, get_data_patterns
    try:
        if config:
            raise ValueError(f":{config}, a configuration, which only the hub has")
        saved = [os.path.join(path, f) for f in ("state.json", "dataset_dict.json")]
        if any(os.path.exists(f) for f in saved):               # datasets' save_to_disk
            rows = datasets.load_from_disk(path)
            rows = rows[split] if isinstance(rows, dict) else rows
            stamp = [_digest(f["filename"]) for f in rows.cache_files]
            return Source(name, stamp, partial(_numbered, path, rows))
        # datasets knows splits by the names of files: train.jsonl, test/0.json
        splits = DataFilesDict.from_patterns(get_data_patterns(path), base_path=path)
        root = os.path.abspath(path)
        found = sorted(os.path.join(path, os.path.relpath(f, root)) for f in splits[split])
    except (OSError, KeyError, ValueError) as e:
        raise ValueError(f"--data {spec}: expected a folder with data of the split {split!r}, "
                         f"found {type(e).__name__} {e}; name a split as FOLDER@SPLIT, or the "
                         "files themselves") from None
    found = [f for f in found if f.endswith(SUFFIXES)]
    if not found:
        raise ValueError(f"--data {spec}: expected files {', '.join(SUFFIXES)} in the folder, "
                         "found none")
    stamp = [(f, _digest(f)) for f in found]
    return Source(name, stamp, partial(_read_all, found))


def _hub(spec, name, path, config, split):
    try:
        import datasets
        rows = datasets.load_dataset(path, config, split=split)
    except Exception as e:              # no network, name, configuration or split: many classes
        raise ValueError(f"--data {spec}: no such folder here, none from the hub "
                         f"({type(e).__name__}: {str(e).strip()[:200]}); check "
                         "OWNER/NAME[:CONFIG][@SPLIT] and the network, or pass a local file"
                         ) from None
    return Source(name, rows._fingerprint, partial(_numbered, spec, rows))


def _source(spec):
    """The Source that --data SPEC names: a file, a folder or a data set of the hub."""
    path, config, split = spec, None, None
    if spec and not os.path.exists(spec):                       # a file's own name may hold : or @
        parts = re.fullmatch(r"(.+?)(?::([^:@/]+))?(?:@([^@/]+))?", spec, re.S)
        path, config, split = parts.groups()
    base = os.path.basename(os.path.normpath(path))
    name = re.sub(r"(\.jsonl?(\.gz)?|\.parquet)$", "", base)
    if os.path.isfile(path):
        return _file(spec, name, path)
    if os.path.isdir(path):
        return _folder(spec, name, path, config, split or "train")
    if path.endswith(SUFFIXES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
        raise ValueError(f"--data {spec}: no such file or folder (from {os.getcwd()}), and no hub "
                         "name OWNER/NAME[:CONFIG][@SPLIT]; check the path")
    return _hub(spec, name, path, config, split or "train")


# --------------------------------------------------------------------------------------------------
# rows -> samples


def load_text(specs: list[str], enc: Tokenizer, *, template: str = "auto", prompt_column: str = "",
              completion_column: str = "", max_len: int | None = None, long: str = "error",
              say: Callable[[str], object] = lambda line: None, cache: str = CACHE) -> list[Sample]:
    """Files, folders and data sets of the hub -> Samples with ids 0..N-1.

    specs: files (.jsonl, .json with an array, both also .gz, .parquet), FOLDER[@SPLIT], or names
        on the hub, OWNER/NAME[:CONFIG][@SPLIT]; the split is train unless told.
    A row has `messages` [{role, content}] (or `conversations` [{from, value}]), else `prompt` and
        `completion`, else `question` and `answer`; if columns are named, only those are read.
        Texts stay as they are. `family` or `source` of a row becomes the sample's family. No two
        rows may share an `id`.
    template: wraps every row; by default the tokenizer's own. If there is none, prompt and
        completion are joined as they are, and other rows take "plain".
    max_len: the most tokens that a model reads of a sample, which has one more; None: no limit.
    long: what becomes of longer samples, one of LONG.
    say: gets a line of counts for each of specs.
    cache: the folder in which samples of CACHED_ROWS rows and more are kept, each under the hash
        of all that they depend on.
    Raises ValueError, with file and line, on any row that does not fit; nothing is skipped.
    """
    if (not specs or len(set(specs)) < len(specs) or long not in LONG
            or bool(prompt_column) != bool(completion_column)
            or (max_len is not None and max_len < 1)):
        raise ValueError("data: expected --data once or more, none twice, --long "
                         f"{'|'.join(LONG)}, --max-len from 1, and both --prompt-column and "
                         f"--completion-column or neither; found {specs}, {long}, {max_len}, "
                         f"{prompt_column!r}, {completion_column!r}")
    source = template_source(template, enc)
    try:
        compiled(source)
    except Exception as e:              # Jinja has several classes of errors
        raise ValueError(f"--template {template}: no Jinja template: {e}") from None
    bare = source                       # the template for rows of prompt and completion
    if template == "auto" and not enc.chat_template:
        bare = template_source("none", enc)
    sources = [_source(spec) for spec in specs]
    stamps = [s.stamp for s in sources]
    modules = (data, chat, files, tokenizer)
    code = [_digest(path) for path in (__file__, *(m.__file__ for m in modules))]
    key = [code, sys.version, specs, stamps, fingerprint(enc), enc.end_id, enc.stop_ids, enc.bos_id,
           bos_token(enc), source, bare, prompt_column, completion_column, max_len, long]
    path = os.path.join(cache, hashlib.sha256(repr(key).encode()).hexdigest()[:32] + ".pt")
    kept = _read_cache(path)
    if kept is None:
        reader = _Reader(enc, source, bare, prompt_column, completion_column)
        kept = _tokenise(specs, sources, reader, max_len, long)
        # A template that writes the date gives another text tomorrow; and files may have changed
        # while they were read.
        lasts = sum(kept["rows"]) >= CACHED_ROWS and "strftime_now" not in source
        if lasts and [_source(spec).stamp for spec in specs] == stamps:
            write_atomically(path, lambda f: torch.save(kept, f))
    for line in kept["report"]:
        say(line)
    lengths = kept["lengths"].tolist()
    fields = zip(kept["family"], kept["tokens"].split(lengths), kept["loss"].split(lengths),
                 kept["where"], strict=True)
    return [Sample(i, *values) for i, values in enumerate(fields)]


class _Reader:
    """Sources -> conversations as pieces of text, and these -> tokens."""

    def __init__(self, enc, template, bare_template, prompt_column, completion_column):
        self.enc = enc
        self.template, self.bare_template = template, bare_template
        self.columns = prompt_column, completion_column
        self.control = re.compile("|".join(map(re.escape, chat.control_tokens(enc))))
        self.alphabet = b"".join(token for token in enc._mergeable_ranks if len(token) == 1)
        self.special = enc.special_tokens_set
        self.ids = {}                   # a row's id -> where it stands
        self.n_rows = 0

    def samples(self, source):
        """Yields (where, family, pieces) of each sample of a Source, read as they are asked for."""
        for where, row in source.rows():
            self.n_rows += 1
            if row.get("id") is not None:
                first = self.ids.setdefault(repr(row["id"]), where)
                if first is not where:
                    raise ValueError(f"{where}: id {row['id']!r} is also that of {first}; ids must "
                                     "differ, or leave them out")
            try:
                samples = self._pieces(row)
            except ValueError as e:
                raise ValueError(f"{where}: {e}") from None
            family = source.name
            for key in ("source", "family"):                    # the latter counts if both exist
                if isinstance(row.get(key), str) and row[key]:
                    family = row[key]
            for sample in samples:
                yield where, family, sample

    def _pieces(self, row):
        messages, is_bare = _conversation(row, *self.columns, self.control)
        template = self.bare_template if is_bare else self.template
        samples = pieces(messages, self.enc, template)
        text = "".join(text for sample in samples for text, _ in sample)
        # A tokenizer would leave these bytes out. encode() also refuses half surrogate pairs.
        if text.encode().translate(None, self.alphabet):
            foreign = next(c for c in text if c.encode().translate(None, self.alphabet))
            raise ValueError(f"the vocabulary lacks {foreign!r}; take it out of the row, or take a "
                             "tokenizer that has it (plumbing.text: --tokenizer FOLDER)")
        return samples

    def encode(self, texts):
        return [self.enc.encode(text, allowed_special=self.special, disallowed_special=())
                for text in texts]


def _chunks(stream, n):
    """Lists of n items each, the last one maybe shorter."""
    while chunk := list(itertools.islice(stream, n)):
        yield chunk


def _tokenise(specs, sources, reader, max_len, long):
    """The work of load_text -> the dictionary that its cache keeps.

    The tokens of all samples lie end to end in one tensor: as lists they would take nine times the
    memory.
    """
    tokens, loss = array.array("i"), bytearray()
    lengths, family, where, rows, report, too_long = [], [], [], [], [], []
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count())) as pool:
        for spec, source in zip(specs, sources, strict=True):
            reader.n_rows = dropped = truncated = 0
            tokens_before, samples_before = len(tokens), len(lengths)
            for chunk in _chunks(reader.samples(source), 1000):
                texts = [text for _, _, sample in chunk for text, _ in sample]
                # one call of the pool for each text would take twice the time
                blocks = [texts[i:i + 64] for i in range(0, len(texts), 64)]
                encoded = itertools.chain.from_iterable(pool.map(reader.encode, blocks))
                for at, group, sample in chunk:
                    ids, counts = [], bytearray()
                    for _, counted in sample:
                        part = next(encoded)
                        ids += part
                        counts += bytes([counted]) * len(part)
                    counts[0] = False   # nothing stands before the first token to predict it
                    if max_len is not None and len(ids) - 1 > max_len:
                        too_long.append((at, len(ids) - 1))
                        ids, counts = ids[:max_len + 1], counts[:max_len + 1]
                        if long == "drop" or True not in counts:
                            dropped += 1
                            continue
                        truncated += 1
                    tokens.extend(ids)
                    loss += counts
                    lengths.append(len(ids))
                    family.append(group)
                    where.append(at)
            if not reader.n_rows:
                raise ValueError(f"--data {spec}: no row in it; check the path")
            rows.append(reader.n_rows)
            line = (f"data: {spec}: {reader.n_rows:,} rows -> {len(lengths) - samples_before:,} "
                    f"samples of {len(tokens) - tokens_before:,} tokens, "
                    f"{loss.count(True, tokens_before):,} with loss")
            if dropped or truncated:
                line += f"; over --max-len {max_len}: {dropped:,} dropped, {truncated:,} truncated"
            report.append(line)
    if too_long and long == "error":
        at, length = max(too_long, key=lambda found: found[1])
        raise ValueError(f"{at}: {length:,} tokens, the longest of {len(too_long):,} samples that "
                         f"exceed --max-len {max_len}; pass --long drop, --long truncate, or a "
                         "larger --max-len")
    if not tokens:
        raise ValueError(f"data: no sample with a loss token is left: {len(too_long):,} exceed "
                         f"--max-len {max_len}; raise it")
    kept = {"tokens": torch.frombuffer(tokens, dtype=torch.int32),
            "loss": torch.frombuffer(loss, dtype=torch.bool), "lengths": torch.tensor(lengths),
            "family": family, "where": where, "rows": rows, "report": report}
    return {**kept, "digest": _content(kept)}


def _content(kept):
    """The hash of what _tokenise gave."""
    h = hashlib.sha256(repr([kept[k] for k in ("family", "where", "rows", "report")]).encode())
    for k in ("tokens", "loss", "lengths"):
        h.update(kept[k].numpy())
    return h.hexdigest()


def _read_cache(path):
    """What _tokenise gave, or None if there is no such file, or a damaged one: it is made again.

    The file is mapped into memory, and read only where it is used.
    """
    if not os.path.exists(path):
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return kept if kept["digest"] == _content(kept) else None
    except Exception:                   # torch raises seven kinds of errors on a broken archive
        return None


# --------------------------------------------------------------------------------------------------
# the command line


def marked(sample: Sample, enc: Tokenizer, colour: bool) -> str:
    """A sample's text with all that has loss in green, or, without colours, between ⟦ and ⟧."""
    left, right = ("\033[32m", "\033[0m") if colour else ("⟦", "⟧")
    text = ""
    pairs = zip(sample.loss.tolist(), sample.tokens.tolist(), strict=True)
    for has_loss, run in itertools.groupby(pairs, key=lambda pair: pair[0]):
        part = enc.decode([token for _, token in run])
        text += left + part + right if has_loss else part
    return text


@program("data")
def main(argv: list[str] | None = None):
    """Print what a model would be trained on."""
    cli = argparse.ArgumentParser(prog="python -m plumbing.text",
                                  description="Print samples, what has loss marked.")
    cli.add_argument("--data", nargs="+", required=True, metavar="SPEC",
                     help="files, folders, names on the hub; see load_text")
    cli.add_argument("--tokenizer", default="", help="a Hugging Face folder, a tokenizer.json or "
                     ".tiktoken file (default: the built-in tasks')")
    cli.add_argument("--template", default="auto",
                     help=f"auto, {', '.join(TEMPLATES)} or a .jinja file")
    cli.add_argument("--prompt-column", default="",
                     help="the column that is asked, with --completion-column")
    cli.add_argument("--completion-column", default="", help="the column that is learned")
    cli.add_argument("--max-len", type=int,
                     help="the most tokens that a model reads of a sample (default: no limit)")
    cli.add_argument("--long", choices=LONG, default="error", help="what becomes of longer samples")
    cli.add_argument("-n", type=int, default=3, help="samples to print")
    a = cli.parse_args(argv)
    enc = load_tokenizer(a.tokenizer) if a.tokenizer else toy_encoding()
    enc = with_template(enc, a.template)
    samples = load_text(a.data, enc, prompt_column=a.prompt_column,
                        completion_column=a.completion_column, max_len=a.max_len, long=a.long,
                        say=print)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for s in samples[:a.n]:
        print(f"\n--- id {s.id} | {s.where} | {s.family} | {len(s.tokens):,} tokens, "
              f"{int(s.loss.sum()):,} with loss")
        print(marked(s, enc, colour))


if __name__ == "__main__":
    main()
