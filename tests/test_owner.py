"""plumbing/owner.py: a folder belongs to one run at a time, and what dead runs left is removed."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from runs import BASELINES, TINY, files_of, refuse, same, scores

import train_wmss
from plumbing import owner
from plumbing import run as run_module
from plumbing.checkpoints import digest_of
from plumbing.files import read_json
from plumbing.run import Folder, Ranks
from train_wmss import Config

HOLD = "import sys; sys.path.insert(0, {root!r}); from plumbing import owner; " \
       "print(owner.lock({out!r}), flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds out/a until it is killed."""
    code = HOLD.format(root=ROOT, out=str(tmp_path / "out" / "a"))
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    other.stdout.readline()
    yield other
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()


def test_two_runs_at_once_on_one_folder_are_refused(run, holder, tmp_path):
    """Bug: base.pt of seed 5 and the rest of seed 0, with exit 0; each log step written twice by
    two resumes; a lock that stays when its process was killed."""
    for mode in ((), ("--overwrite",), ("--resume", "auto")):
        said = refuse(*TINY, "--name", "a", "--stages", "base", *mode)
        assert f"in use by process {holder.pid} on" in said and "choose another --name" in said
    assert not (tmp_path / "out" / "a").exists()
    holder.kill()
    holder.wait()
    out = run("--name", "a", "--stages", "base")
    before = files_of(out)
    owner.lock(str(out))
    code = HOLD.format(root=ROOT, out=str(out))
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, input="")
    assert f"in use by process {os.getpid()} on" in other.stderr and files_of(out) == before
    owner.unlock(str(out))
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, input="")
    assert other.returncode == 0, "a run that has ended in this process still holds its folder"


def test_a_system_without_locks_says_so(tmp_path, monkeypatch):
    """Bug: an ImportError on Windows, an "Errno 37" on a file system without locks."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert "no file locks; start no second run" in owner.lock(str(tmp_path / "out" / "a"))
    monkeypatch.undo()
    import fcntl

    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert "No locks available" in owner.lock(str(tmp_path / "out" / "b"))


def test_overwrite_deletes_what_this_program_made_and_nothing_else(run, tmp_path):
    """Bug: a Hugging Face folder in out/ deleted; a link followed; a sentence that sends one from
    --resume to --overwrite and back."""
    hf = tmp_path / "out" / "a"
    hf.mkdir(parents=True)
    config = {"model_type": "llama", "name": "x", "stages": "", "seed": 0, "lam": 0}
    for text in (json.dumps(config), '{"vocab_size": 3}', "[1]", "{", ""):
        (hf / "config.json").write_text(text)
        (hf / "model.safetensors").write_text("weights")
        before = files_of(hf)
        for mode in ((), ("--overwrite",), ("--resume",), ("--resume", "auto")):
            said = refuse(*TINY, "--name", "a", "--stages", "base", *mode)
            assert "not a run of ours; not touched, choose another --name or delete it" in said
        assert files_of(hf) == before
    out = run("--name", "b", "--stages", "base")
    os.symlink(out, tmp_path / "out" / "link")
    assert "is a link" in refuse(*TINY, "--name", "link", "--stages", "base", "--overwrite")
    assert (out / "base.pt").exists()


@pytest.mark.parametrize("mode", [("--overwrite",), ("--resume",), ("--resume", "auto"), ()])
def test_a_kill_between_the_folder_and_its_config_is_no_dead_end(run, tmp_path, mode):
    """Bug: "exists" without --resume, "cannot read config.json; use --overwrite" with it, "not a
    run of ours" with that."""
    out = tmp_path / "out" / "a"
    out.mkdir(parents=True)
    (out / "config.json.tmp999999999").write_text('{"na')
    moved = tmp_path / "out" / ".a.deleted"         # a kill inside an --overwrite before it
    moved.mkdir()
    (moved / "base.pt").write_text("old")
    run("--name", "a", "--stages", "base", *mode)
    assert (out / "base.pt").exists() and not moved.exists()
    assert not list(out.glob("*.tmp*"))


@pytest.mark.parametrize("dies_in", ("rename", "rmtree", "write_text"))
def test_a_kill_inside_overwrite_leaves_the_old_run_or_none(run, tmp_path, monkeypatch, dies_in):
    """Bug: half of the old run beside half of the new one; a folder that nothing goes on with."""
    flags = ("--name", "a", "--stages", "base")
    out = run(*flags)
    old = (out / "base.pt").read_bytes()

    def die(*args, **kw):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr({"rename": os, "rmtree": owner.shutil, "write_text": run_module}[dies_in],
                  dies_in, die)
        with pytest.raises(SystemExit, match="130"):
            run(*flags, "--overwrite")
    assert not out.exists() or (out / "base.pt").read_bytes() == old
    run(*flags, "--overwrite")
    assert sorted(os.listdir(out)) == ["base.pt", "config.json", "log.jsonl", "report.html"]
    assert sorted(os.listdir(tmp_path / "out")) == [".a.lock", "a"]


def test_what_dead_runs_left_is_removed_and_what_lives_is_not(run):
    """Bug: 61 files left after 114 kills, 96 GB each at 4B; an export that is being written into
    the folder deleted under its process."""
    out = run("--name", "a", "--stages", "base")
    (out / "answers").mkdir()
    for name in ("base.pt.tmp999999999", "answers/sft.jsonl.tmp999999999", "resume-base.pt",
                 f"model.safetensors.tmp{os.getppid()}", "notes.tmpl", "resume-sft.md"):
        (out / name).write_text("x")
    cache = out.parent / "cache"
    cache.mkdir()
    for name, old in (("x.pt.tmp999999999", 90_000), ("y.pt.tmp999999999", 0), ("z.pt", 90_000)):
        (cache / name).write_text("x")
        os.utime(cache / name, (time.time() - old,) * 2)
    run("--name", "a", "--stages", "base", "--resume")
    assert sorted(os.listdir(cache)) == ["y.pt.tmp999999999", "z.pt"]
    left = sorted(os.path.relpath(path, out) for path in files_of(out))
    assert left == ["base.pt", "config.json", "log.jsonl", f"model.safetensors.tmp{os.getppid()}",
                    "notes.tmpl", "report.html", "resume-sft.md"]


def test_resume_auto_starts_what_is_not_there_and_goes_on_with_what_is(run, trained):
    """Bug: two commands, of which a requeued job would have to know which one to use."""
    flags = ("--name", "a", *BASELINES, "--resume", "auto", "--stages")
    out = run(*flags, "base")
    before = (out / "base.pt").read_bytes()
    run(*flags, "base,sft")
    assert (out / "base.pt").read_bytes() == before and same(out / "sft.pt", trained / "sft.pt")
    assert "--lam 0.5 -> 0.3" in refuse(*TINY, *flags, "base", "--lam", "0.3")
    assert "not both" in refuse(*TINY, *flags, "base", "--overwrite")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "resume": False}))   # an old run's
    run(*flags[:-3], "--resume", "--stages", "base,sft")


def test_a_table_describes_the_checkpoints_beside_it(run):
    """Bug: a table of models that were deleted and trained again since."""
    flags = ("--name", "a", "--arm", "sft-steps")
    out = run(*flags)
    for row in scores(out):
        assert row["digest"] == digest_of(out / f"{row['model']}.pt") and len(row["digest"]) == 16
    run(*flags, "--resume", "--stages", "base")
    scored = (out / "report.html").read_text()
    assert (out / "scores.json").exists() and "sft-steps" in scored
    os.remove(out / "sft-steps.pt")
    run(*flags, "--resume", "--stages", "base,sft,entropy,wmss")
    assert (out / "sft-steps.pt").exists()
    assert not (out / "scores.json").exists()
    told = "plain training from the same M1"
    assert told in scored and told not in (out / "report.html").read_text()


def test_the_digest_of_a_folder_is_that_of_its_weights_and_settings(hf_folder, tmp_path):
    """Bug: another config.json under the same weights, that nobody notices."""
    (tmp_path / "m").mkdir()
    for name in os.listdir(hf_folder):
        (tmp_path / "m" / name).write_bytes((hf_folder / name).read_bytes())
    assert digest_of(tmp_path / "m") == digest_of(hf_folder)
    with open(tmp_path / "m" / "config.json", "a") as f:
        f.write(" ")
    assert digest_of(tmp_path / "m") != digest_of(hf_folder)


def test_a_full_disk_is_refused_before_the_stage(run, monkeypatch, capsys):
    """Bug: a night of training, and no room for its checkpoint."""
    real = owner.shutil.disk_usage
    monkeypatch.setattr(owner.shutil, "disk_usage",
                        lambda path: real(path)._replace(free=20_000))
    said = refuse(*TINY, "--name", "a", "--stages", "base")
    assert "base needs up to" in said and "2e-05 GB are free; make room" in said
    assert owner.check_disk(".", "sft", 15_000) == "sft: up to 1.5e-05 GB in ., 2e-05 GB are free"


def test_a_rank_that_does_not_see_the_folder_is_named_at_the_start(tmp_path, monkeypatch):
    """Bug: a second node without base.pt, noticed after the whole base stage."""
    monkeypatch.setattr(run_module, "SHARED_SECONDS", 0)
    ranks, folder = Ranks(Config(threads=1)), Folder(Config(), 0, str(tmp_path))
    folder.check_shared(ranks)
    ranks.world = 2
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda message: None)
    monkeypatch.setattr(ranks, "gather", lambda rows: [*rows, "1 (node7)"])
    with pytest.raises(ValueError, match=r"rank 1 \(node7\) does not see .* of rank 0; start all"):
        folder.check_shared(ranks)
    monkeypatch.setattr(ranks, "gather", lambda rows: [*rows, None])
    folder.check_shared(ranks)
    assert os.listdir(tmp_path) == []
    folder.out = str(tmp_path / "elsewhere")            # what a rank of the other node finds
    assert not folder._holds(folder.path("seen"), "1")


def test_a_rank_with_other_data_is_named_at_the_start(tmp_path, monkeypatch):
    """Bug: two nodes that train on different files of one name, or wait for each other for ever."""
    ranks, folder = Ranks(Config(threads=1)), Folder(Config(), 0, str(tmp_path))
    for mine, models, words in (("d", [], ""), ("d", None, ""), ("e", [], "rank 1"),
                                ("d", ["other"], "rank 1")):
        monkeypatch.setattr(ranks, "gather", lambda rows, own=(mine, models): [
            *rows, ((own[0], "t"), own[1], "1 (node7)")])
        monkeypatch.setattr(ranks, "world", 2)
        if words:
            with pytest.raises(ValueError, match=r"rank 1 \(node7\) has other files than rank 0"):
                folder.check_same(ranks, "d", "t")
        else:
            folder.check_same(ranks, "d", "t")


def test_what_is_damaged_or_of_another_type_is_not_there(tmp_path):
    """Bug: a traceback for a JSON file that holds a list where a dictionary is wanted."""
    path = tmp_path / "a.json"
    for text in (None, "", "{", "[1]", '"ab"', "7"):
        if text is not None:
            path.write_text(text)
        assert read_json(path, {}) == {} and not owner.is_run(tmp_path)
    path.write_text('{"b": 1}')
    assert read_json(path, {}) == {"b": 1} and read_json(path, []) == []


def test_all_arms_have_a_rate():
    """Bug: a sentence that names a flag that does not exist."""
    fields = Config.__dataclass_fields__
    for arm in ("base", "sft", "wmss-round1", *train_wmss.ARMS):
        assert run_module.rate_of(arm) in fields
