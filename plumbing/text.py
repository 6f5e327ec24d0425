"""Text of your own -> Samples: rows of files or of the hub, conversations, chat template, tokens.

    python -m plumbing.text --data a.jsonl --tokenizer FOLDER -n 3        # what has loss is marked
    python -m plumbing.text --data openai/gsm8k:main --tokenizer FOLDER

What a row may look like, and what --data may name: see load_text.
"""

import array
import hashlib
import itertools
import os
import re
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

import data
from data import Sample
from plumbing import chat, files, tokenizer
from plumbing.bar import bar
from plumbing.chat import TEMPLATES, compiled, pieces, template_source, with_template
from plumbing.cli import parser_of, program
from plumbing.files import read_csv, read_rows, sha256_of, write_atomically
from plumbing.hf import why
from plumbing.tokenizer import Tokenizer, fingerprint, load_tokenizer, toy_encoding

# what rows call a role -> what templates call it
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant", "tool": "tool"}
REASONING = ("reasoning_content", "thinking", "reasoning")      # an answer's thoughts, in rows
LONG = ("drop", "truncate", "error")                            # what becomes of too long samples
MESSAGES = ("messages", "conversations")
PAIRS = (("prompt", "completion"), ("question", "answer"))
SYSTEM = ("system", "system_prompt")                            # columns beside the turns
READ = {"id", "family", "source", "tools", "chat_template_kwargs"}
KEYS = {"role", "content", "from", "value", "tool_calls", "function_call", *REASONING,
        *chat.SWITCHES}                                         # of a message
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
CACHE = os.path.join("out", "cache")
MOST_OF_A_ROW = 10_000_000      # characters; more would take minutes, to be dropped in the end
CACHED_ROWS = 1000      # fewer rows than these are tokenised too fast for a cache to save time

# ---- a row -> a conversation -------------------------------------------------------------------


def _message(turn, column, control):
    """A message of a row -> one as templates know it. ValueError if it is not clear as it stands.

    column: where it was found, for errors. control: pattern of the tokens that it may not spell.
    """
    turn = {k: v for k, v in turn.items() if v is not None}     # a missing key, to parquet
    m = {"role": turn.pop("from", None), "content": turn.pop("value", None), **turn}
    if not isinstance(m["role"], str) or m["role"] not in ROLES:
        raise ValueError(f"unknown role {m['role']!r} in {column}; expected one of "
                         f"{', '.join(ROLES)}")
    role = m["role"] = ROLES[m["role"]]
    if m["content"] is None and m.get("tool_calls"):
        m["content"] = ""
    thoughts = next((m[k] for k in REASONING if m.get(k)), "")
    if thoughts:                        # templates read one or the other name
        m = {"thinking": thoughts, **m, "reasoning_content": thoughts}
    for text in (m["content"], m.get("reasoning_content", "")):
        if not isinstance(text, str):
            raise ValueError(f"expected text as the {role}'s content, found "
                             f"{type(text).__name__} {text!r:.40}")
    found = control.search(str(m))      # in any key: templates read tool_calls, name and more
    if found:
        raise ValueError(f"the {role}'s message spells the control token {found[0]}, which would "
                         "end or open a turn; take it out of the row")
    if role == "assistant" and not m["content"].strip() and not m.get("tool_calls"):
        raise ValueError("empty completion; remove the row")
    return m


def _is_bare(used, columns):
    """Is it a row of prompt and completion, joined as they are if there is no template?"""
    return tuple(used) == PAIRS[0] and columns == ("", "")


def _conversation(row, columns, control):
    """A row -> (its messages, the columns that they stand in).

    columns: the two that --prompt-column and --completion-column name, or two empty strings.
    """
    pairs, lists = [columns], ()
    if columns == ("", ""):
        pairs, lists = PAIRS, MESSAGES
    there = {k for k, value in row.items() if value is not None}
    used = next(([k] for k in lists if k in there), None)
    used = used or next((list(pair) for pair in pairs if there.issuperset(pair)), None)
    if row.get("tools"):
        raise ValueError("tools are not passed to the template; take that column out, or write "
                         "them into a system message")
    if used is None:
        wanted = " or ".join([*lists[:1], *(f"{a} and {b}" for a, b in pairs)])
        found = ", ".join(k for k in row if k in there) or "none"
        raise ValueError(f"expected columns {wanted}, found {found}; name yours with "
                         "--prompt-column and --completion-column")
    turns = row[used[0]]
    if len(used) == 2:
        if used[0] == "instruction" and row.get("input"):   # Alpaca's; joined as others join them
            used.append("input")
            if not isinstance(turns, str) or not isinstance(row["input"], str):
                raise ValueError("expected text in instruction and input")
            turns += "\n" + row["input"]
        turns = [{"role": "user", "content": turns},
                 {"role": "assistant", "content": row[used[1]]}]
    if not (isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns)):
        raise ValueError(f"expected {used[0]} to be a list of {{role, content}}, found "
                         f"{turns!r:.60}")
    for key in SYSTEM:
        if row.get(key) and key not in used:
            system = {"role": "system", "content": row[key]}
            if turns[0].get("role", turns[0].get("from")) != "system":
                turns = [system, *turns]
            elif row[key] != turns[0].get("content", turns[0].get("value")):
                raise ValueError(f"the column {key} and the system message in {used[0]} differ; "
                                 "take one of them out")
            used.append(key)
    messages = [_message(turn, used[0], control) for turn in turns]
    if not any(m["role"] == "assistant" and chat.has_loss(m) for m in messages[1:]):
        raise ValueError("no assistant's turn that answers something, hence no loss token; "
                         "remove the row")
    return messages, used


# ---- --data -> rows ----------------------------------------------------------------------------


def _without_nulls(value):
    """Without the keys of other rows, which parquet gives to each with None."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _numbered(where, rows):
    """Yields ("file:line", row) of a table's rows."""
    i = 0
    try:
        for i, row in enumerate(rows, 1):
            yield f"{where}:{i}", _without_nulls(row)
    except UnicodeDecodeError as e:
        raise ValueError(f"{where}:{i + 1}: expected text in UTF-8, found {e}; mend or remove that "
                         "row") from None


def _parquet_rows(path):
    import pyarrow.parquet  # datasets would read it too, but copy it to its own cache
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000):
            try:
                yield from batch.to_pylist(maps_as_pydicts="lossy")
            except UnicodeDecodeError:          # one by one, so that the row is known
                for i in range(len(batch)):
                    yield from batch.slice(i, 1).to_pylist()
    except (OSError, pyarrow.ArrowException) as e:
        raise ValueError(f"{path}: expected a parquet file, found {e}") from None


def _read(paths):
    """Yields ("file:line", row) of files."""
    for path in paths:
        is_table = path.endswith(".parquet")
        read = read_csv if path.endswith(".csv") else read_rows
        yield from _numbered(path, _parquet_rows(path)) if is_table else read(path)


def _open(spec, path, config, split):
    """(stamp, rows) of what --data names; see _source."""
    paths, is_folder = [path], os.path.isdir(path)
    saved = [os.path.join(path, f) for f in ("state.json", "dataset_dict.json")]
    if not os.path.exists(path):
        if path.endswith(SUFFIXES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
            raise ValueError("it is no OWNER/NAME")
        import datasets
        table = datasets.load_dataset(path, config, split=split)
        return table._fingerprint, partial(_numbered, spec, table)
    if config or (path != spec and not is_folder):
        raise ValueError("no :CONFIG or @SPLIT may follow a file, no :CONFIG a folder")
    if any(map(os.path.exists, saved)):                 # datasets' save_to_disk
        import datasets
        table = datasets.load_from_disk(path)
        table = table[split] if isinstance(table, dict) else table
        stamp = [sha256_of(f["filename"]) for f in table.cache_files]
        return stamp, partial(_numbered, path, table)
    if is_folder:                       # datasets knows splits by names: train.jsonl, test/0.json
        from datasets.data_files import DataFilesDict, get_data_patterns
        splits = DataFilesDict.from_patterns(get_data_patterns(path), base_path=path)
        root = os.path.abspath(path)
        paths = sorted(os.path.join(path, os.path.relpath(f, root)) for f in splits.get(split, []))
    odd = [f for f in paths if f.endswith((".csv", ".tsv", ".arrow", ".zst", ".xz", ".bz2"))]
    if is_folder and odd:               # shards that would be left out
        raise ValueError(f"{odd[0]} is no {', '.join(SUFFIXES)}; convert it, or name the files")
    paths = [f for f in paths if f.endswith(SUFFIXES)]
    if not paths:
        raise ValueError(f"no file named {', '.join(SUFFIXES)} (split: {split})")
    return [(f, sha256_of(f)) for f in paths], partial(_read, paths)


def _source(spec):
    """What --data SPEC names -> (family, stamp, rows).

    family: that of rows which name none. stamp: changes when the content does. rows() gives
    ("file:line", row) one by one.
    """
    path, config, split = spec, None, None
    if not os.path.exists(spec):                        # a file's own name may hold : or @
        parts = re.fullmatch(r"(.*?)(?::([^:@/]+))?(?:@([^@/]+))?", spec, re.S)
        path, config, split = parts.groups()
    family = re.sub(r"(\.jsonl?(\.gz)?|\.parquet)$", "", os.path.basename(os.path.normpath(path)))
    try:
        return family, *_open(spec, path, config, split or "train")
    except Exception as e:              # of datasets and the hub: many classes
        found = "" if os.path.exists(path) else "no such file or folder here, nor from the hub: "
        raise ValueError(f"--data {spec}: {found}{why(e)}; pass a file, FOLDER[@SPLIT], or "
                         "OWNER/NAME[:CONFIG][@SPLIT]") from None


def conversations(path: str, columns: tuple[str, str] = ("", "")):
    """Yield ("file:line", row, messages) of a file's rows, for scoring: the last turn is the gold
    answer, and may be a number; a question that training joins to its answer as it is has "bare".
    columns: of question and answer, where they have names of their own; a file without them is
    read as any other.

    ValueError, with file and line, where no assistant's turn is the last.
    """
    nothing = re.compile("(?!)")
    for where, row in _read([path]):
        try:
            texts = {k: str(v) if type(v) in (int, float) and v - v == 0 else v    # no NaN
                     for k, v in row.items()}
            named = columns if columns[1] in row else ("", "")
            messages, used = _conversation(texts, named, nothing)
            if _is_bare(used, named):
                messages[0]["bare"] = True
            if messages[-1]["role"] != "assistant":
                raise ValueError("expected the assistant's turn, the gold answer, at the end, "
                                 f"found one of the {messages[-1]['role']}")
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from None
        yield where, row, messages


# ---- rows -> samples ---------------------------------------------------------------------------


def load_text(specs: list[str], enc: Tokenizer, *, template: str = "auto", prompt_column: str = "",
              completion_column: str = "", max_len: int | None = None, long: str = "error",
              say: Callable[[str], object] = lambda line: None, cache: str = CACHE) -> list[Sample]:
    """Files, folders and data sets of the hub -> Samples with ids 0..N-1.

    specs: files (.jsonl, .json with an array, both also .gz, .parquet), FOLDER[@SPLIT], or names
        on the hub, OWNER/NAME[:CONFIG][@SPLIT]; the split is train unless told.
    A row has `messages` [{role, content}] (or `conversations` [{from, value}]), else `prompt` and
        `completion`, else `question` and `answer`, or the columns that are named; beside
        `instruction`, `input` is read too. `system` or `system_prompt` opens the conversation,
        `chat_template_kwargs` go to the template, `family` or `source` becomes the sample's
        family. A message with `weight` 0, or `train` or `loss` false, is read and not learned. No
        two rows may share an `id`. The line of counts names what else a row holds.
    template: wraps every row; by default the tokenizer's own. If there is none, prompt and
        completion are joined as they are, and other rows take "plain".
    max_len: the most tokens that a model reads of a sample, which has one more; None: no limit.
    long: what becomes of longer samples, one of LONG.
    say: gets a line of counts for each of specs.
    cache: the folder that keeps samples of CACHED_ROWS rows and more, by all they depend on.
    Raises ValueError, with file and line, on any row that does not fit; nothing is skipped.
    """
    columns = (prompt_column, completion_column)
    if (not specs or len(set(specs)) < len(specs) or long not in LONG or columns.count("") == 1
            or (max_len is not None and max_len < 1)):
        raise ValueError(f"data: expected --data once or more, none twice, --long {'|'.join(LONG)},"
                         " --max-len from 1, and both --prompt-column and --completion-column or "
                         f"neither; found {specs}, {long}, {max_len}, {columns}")
    source = template_source(template, enc)
    try:
        compiled(source)
    except Exception as e:              # of Jinja: several classes
        raise ValueError(f"--template {template}: no Jinja template: {e}") from None
    bare = source                       # the template for rows of prompt and completion
    if template == "auto" and not enc.chat_template:
        bare = template_source("none", enc)
    sources = [_source(spec) for spec in specs]
    stamps = [stamp for _, stamp, _ in sources]
    modules = (sys.modules[__name__], data, chat, files, tokenizer)
    code = [sha256_of(module.__file__) for module in modules]
    key = [code, sys.version, specs, stamps, fingerprint(enc), enc.end_id, enc.stop_ids, enc.bos_id,
           chat.named_tokens(enc), source, bare, enc.settings, columns, max_len, long]
    path = os.path.join(cache, hashlib.sha256(repr(key).encode()).hexdigest()[:32] + ".pt")
    kept = _read_cache(path)
    if kept is None:
        kept = _tokenise(specs, sources, _Reader(enc, source, bare, columns), max_len, long)
        # not if a template writes today's date, nor if files changed while they were read
        dated = "strftime_now" not in source or "date" in enc.settings
        if dated and kept["rows"] >= CACHED_ROWS and [_source(spec)[1] for spec in specs] == stamps:
            write_atomically(path, lambda f: torch.save(kept, f))
    for line in kept["report"]:
        say(line)
    lengths = kept["lengths"].tolist()
    fields = zip(kept["family"], kept["tokens"].split(lengths), kept["loss"].split(lengths),
                 kept["where"], strict=True)
    return [Sample(i, *values) for i, values in enumerate(fields)]


class _Reader:
    """Rows -> conversations as pieces of text, and these -> tokens."""

    def __init__(self, enc, template, bare_template, columns):
        self.enc, self.columns = enc, columns
        self.template, self.bare_template = template, bare_template
        self.control = re.compile("|".join(map(re.escape, chat.control_tokens(enc))))
        self.alphabet = b"".join(token for token in enc._mergeable_ranks if len(token) == 1)
        self.ids = {}                   # a row's id -> where it stands
        self.beside, self.unread = {}, {}       # columns of a file: what the line of counts names

    def read(self, where, row, name):
        """A row -> [(where, family, pieces)] of its samples. name: the family of nameless rows."""
        try:
            first = self.ids.setdefault(repr(row.get("id")), where)
            if row.get("id") is not None and first is not where:
                raise ValueError(f"id {row['id']!r} is also that of {first}; ids must differ, or "
                                 "leave them out")
            messages, used = _conversation(row, self.columns, self.control)
            template = self.bare_template if _is_bare(used, self.columns) else self.template
            kwargs = chat.template_arguments(row.get("chat_template_kwargs") or {}, template)
            samples = pieces(messages, self.enc, template, kwargs)
            self._note(row, used, template)
            text = "".join(text for sample in samples for text, _ in sample)
            # A tokenizer would leave these bytes out. encode() also refuses half surrogate pairs.
            if text.encode().translate(None, self.alphabet):
                foreign = next(c for c in text if c.encode().translate(None, self.alphabet))
                raise ValueError(f"the vocabulary lacks {foreign!r}; take it out of the row, or "
                                 "take a tokenizer that has it (plumbing.text: --tokenizer FOLDER)")
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{where}: {e}") from None
        for key in ("source", "family"):                    # the latter counts if both exist
            if isinstance(row.get(key), str) and row[key]:
                name = row[key]
        return [(where, name, sample) for sample in samples]

    def _note(self, row, used, template):
        """Keep in mind which columns are read beside the turns, and which are not read at all."""
        turns = row[used[0]]
        self.beside.update(dict.fromkeys(used[1 if isinstance(turns, list) else 2:]))
        self.unread.update((k, 1) for k in row if row[k] is not None and k not in READ.union(used))
        for turn in turns if isinstance(turns, list) else ():
            self.unread.update((f"{used[0]}.{k}", 1) for k in sorted(turn.keys() - KEYS)
                               if turn[k] is not None and k not in template)

    def encode(self, samples):
        """[(where, family, pieces)] -> [(where, family, ids, counts)]: does a token have loss?"""
        encoded = []
        for where, family, parts in samples:
            ids, counts = [], bytearray()
            for text, has_loss in parts:
                part = self.enc.encode(text, allowed_special="all", disallowed_special=())
                ids += part
                counts += bytes([has_loss]) * len(part)
            counts[0] = False           # nothing stands before the first token to predict it
            encoded.append((where, family, ids, counts))
        return encoded


def _tokenise(specs, sources, reader, max_len, long):
    """The work of load_text -> the dictionary that its cache keeps.

    All samples lie end to end in one tensor: as lists they would take nine times the memory.
    """
    tokens, loss = array.array("i"), bytearray()
    lengths, families, places, report, too_long, all_rows = [], [], [], [], [], 0
    with ThreadPoolExecutor(min(8, os.cpu_count())) as pool:
        named = list(zip(specs, sources, strict=True))
        for spec, (name, _, rows) in bar(named, "tokenising", "source"):
            n_rows = dropped = truncated = 0
            tokens_before, samples_before, stream = len(tokens), len(lengths), rows()
            reader.beside, reader.unread = {}, {}
            while chunk := list(itertools.islice(stream, 1000)):
                n_rows += len(chunk)
                huge = [where for where, row in chunk if len(str(row)) > MOST_OF_A_ROW]
                if huge and (max_len is None or long != "drop"):
                    raise ValueError(f"{huge[0]}: a row of more than {MOST_OF_A_ROW:,} characters; "
                                     "shorten it, or pass --max-len and --long drop")
                dropped += len(huge)
                chunk = [(where, row) for where, row in chunk if where not in huge]
                samples = [s for where, row in chunk for s in reader.read(where, row, name)]
                # one call of the pool for each sample would take twice the time
                blocks = [samples[i:i + 32] for i in range(0, len(samples), 32)]
                encoded = itertools.chain.from_iterable(pool.map(reader.encode, blocks))
                for where, family, ids, counts in encoded:
                    if max_len is not None and len(ids) - 1 > max_len:
                        too_long.append((len(ids) - 1, where))
                        ids, counts = ids[:max_len + 1], counts[:max_len + 1]
                        if long == "drop" or True not in counts:
                            dropped += 1
                            continue
                        truncated += 1
                    tokens.extend(ids)
                    loss += counts
                    lengths.append(len(ids))
                    families.append(family)
                    places.append(where)
            if not n_rows:
                raise ValueError(f"--data {spec}: no row in it; check the path")
            all_rows += n_rows
            line = (f"data: {spec}: {n_rows:,} rows -> {len(lengths) - samples_before:,} "
                    f"samples of {len(tokens) - tokens_before:,} tokens, "
                    f"{loss.count(True, tokens_before):,} with loss")
            if dropped or truncated:
                line += f"; over --max-len {max_len}: {dropped:,} dropped, {truncated:,} truncated"
            for what, columns in (("also read", reader.beside), ("not read", reader.unread)):
                if columns:
                    line += f"; {what}: {', '.join([*columns][:9])}"
            report.append(line)
    if too_long and long == "error":
        length, at = max(too_long, key=lambda found: found[0])
        raise ValueError(f"{at}: {length:,} tokens, the longest of {len(too_long):,} samples that "
                         f"exceed --max-len {max_len}; pass --long drop, --long truncate, or a "
                         "larger --max-len")
    if not tokens:
        raise ValueError(f"data: no sample with a loss token is left: {len(too_long):,} exceed "
                         f"--max-len {max_len}; raise it")
    return {"tokens": torch.frombuffer(tokens, dtype=torch.int32),
            "loss": torch.frombuffer(loss, dtype=torch.bool), "lengths": torch.tensor(lengths),
            "family": families, "where": places, "rows": all_rows, "report": report}


def _read_cache(path):
    """What _tokenise gave, mapped into memory; None if there is no such file, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:          # torch.load would overlook a wrong bit
            is_whole = archive.testzip() is None
        return torch.load(path, weights_only=True, mmap=True) if is_whole else None
    except Exception:                   # of a broken archive: seven classes
        return None


# ---- the command line --------------------------------------------------------------------------


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
    cli = parser_of("Print samples, what has loss marked.", "python -m plumbing.text")
    cli.add_argument("--data", nargs="+", required=True, metavar="SPEC",
                     help="files, folders, names on the hub; see load_text")
    cli.add_argument("--tokenizer", default="",
                     help="a folder, tokenizer.json or .tiktoken (default: the built-in tasks')")
    cli.add_argument("--template", default="auto",
                     help=f"auto, {', '.join(TEMPLATES)} or a .jinja file")
    cli.add_argument("--template-date", default="", help="the day that it writes (default: today)")
    cli.add_argument("--template-kwargs", default="", help="a JSON object of what else it reads")
    cli.add_argument("--prompt-column", default="", help="what is asked")
    cli.add_argument("--completion-column", default="", help="what is learned")
    cli.add_argument("--max-len", type=int, help="the most tokens of a sample (default: no limit)")
    cli.add_argument("--long", choices=LONG, default="error", help="what becomes of longer samples")
    cli.add_argument("-n", type=int, default=3, help="samples to print")
    a = cli.parse_args(argv)
    enc = load_tokenizer(a.tokenizer) if a.tokenizer else toy_encoding()
    enc = with_template(enc, a.template, a.template_date, a.template_kwargs)
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
