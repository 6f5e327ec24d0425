"""Systems that this one is not: without Unix's own modules; what a device cannot do."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from runs import TINY, from_m1
from tiny_models import PROMPTS, tiny

from model import Rows
from plumbing import decode, devices, run
from train_wmss import Config

# torch and the standard library come first: on Windows they have ways of their own. Then what Unix
# alone has goes, and everything of ours is imported and used.
WINDOWS = """
import ctypes, glob, importlib, os, signal, socket, subprocess, sys, tempfile
import torch, torch.distributed, tqdm, safetensors.torch
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"):
    sys.modules[name] = None                        # an ImportError for whoever asks
for name in ("fork", "sched_getaffinity", "getuid", "geteuid", "setsid", "killpg", "uname",
             "mkfifo", "O_PATH", "wait4"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGQUIT", "alarm",
             "setitimer", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
if hasattr(socket, "AF_UNIX"):
    del socket.AF_UNIX
sys.platform = "win32"
ctypes.CDLL = None
sys.path.insert(0, ROOT)
for path in glob.glob(ROOT + "/*.py") + glob.glob(ROOT + "/plumbing/*.py"):
    module = os.path.relpath(path, ROOT)[:-3].replace(os.sep, ".")
    importlib.import_module(module.removesuffix(".__init__"))
import eval_code, sample, train_wmss
train_wmss.main(FLAGS)
sample.main([SFT, "1+1:", "--max-new-tokens", "4"])
try:
    eval_code.main([SFT, "--allow-code-execution"])
except SystemExit as e:
    print("RUNNER", e.code)
try:
    train_wmss.main([*FLAGS, "--name", "code", "--task", "toy-code", "--stages", "score",
                     "--allow-code-execution"])
except SystemExit as e:
    print("TRAIN", e.code)
"""


def test_without_unix_everything_works_but_the_runner_of_programs(trained, tmp_path):
    """Bug: `import resource` at the top of a file that train_wmss.py imports: nothing starts on
    Windows, not even a sum; the runner that says so after hours of training."""
    flags = [*TINY, *from_m1(trained, "score"), "--score-n", "7"]
    code = WINDOWS.replace("ROOT", repr(ROOT)).replace("FLAGS", repr(flags))
    code = code.replace("SFT", repr(str(trained / "sft.pt")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ, "RANK": "0"}, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    (runner,) = [line for line in lines if line.startswith("RUNNER")]
    assert "score them on Linux" in runner and runner.count("eval_code:") == 1
    train = done.stdout[done.stdout.index("TRAIN"):]
    assert "score them on Linux" in train and "nothing was written" in train
    assert "> 1+1:" in lines


def test_here_programs_can_be_run():
    """Bug: a check of the platform that refuses all of them."""
    from plumbing.confine import UNABLE
    if not sys.platform.startswith(("linux", "darwin")):
        pytest.skip("programs are run on Linux and macOS only")
    assert not UNABLE


def gpu_of(monkeypatch, capability):
    """A machine whose GPU is of that compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation: including_emulation or capability >= (8, 0))
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", object())
    devices.has_varlen.cache_clear()
    return torch.device("cuda:0")


@pytest.mark.parametrize("capability, can", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_card_is_asked_for_what_it_has(capability, can, monkeypatch):
    """Bug: a T4 that emulates bf16 at a tenth of its speed, FlashAttention's error on it."""
    card = gpu_of(monkeypatch, capability)
    assert devices.has_bf16(card) is can and devices.has_varlen(card) is can
    for name in ("cpu", "mps"):
        assert not devices.has_bf16(torch.device(name))
        assert not devices.has_varlen(torch.device(name))
    devices.has_varlen.cache_clear()


def test_without_varlen_attention_rows_take_the_plain_path(monkeypatch):
    """Bug: an older torch, or AMD's, ends with an ImportError in the first forward pass."""
    card = gpu_of(monkeypatch, (9, 0))
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert not devices.has_varlen(card)
    devices.has_varlen.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not devices.has_varlen(card)
    devices.has_varlen.cache_clear()
    assert Rows([(2, 3), (1, 5)], card).starts is None
    devices.has_varlen.cache_clear()


def test_draws_in_float64_stay_off_a_gpu_that_has_none(monkeypatch):
    """Bug: --temperature on a Mac ends with "MPS does not support float64"."""
    assert devices.exact(torch.device("mps")) == torch.device("cpu")
    for name in ("cpu", "cuda"):
        assert devices.exact(torch.device(name)) == torch.device(name)
    moved = []
    to = torch.Tensor.to

    def watched(self, *args, **how):
        moved.append((self.dtype, args))
        return to(self, *args, **how)

    model = tiny()
    want = model.generate(PROMPTS, 4, temperature=1.0, seed=2)
    monkeypatch.setattr(torch.Tensor, "to", watched)
    monkeypatch.setattr(decode, "exact", lambda device: torch.device("cpu", 0))
    assert model.generate(PROMPTS, 4, temperature=1.0, seed=2) == want
    doubles = [args for dtype, args in moved if dtype == torch.float64]
    assert doubles == [(torch.device("cpu", 0),)], "nothing in float64 goes to the model's device"


def ranks_on(monkeypatch, device, cuda=False, **env):
    """Ranks of a run on a machine that has this device."""
    asked = []

    def pick(name):
        asked.append(name)
        return torch.device(device)

    monkeypatch.setattr(run, "pick", pick)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(run.dist, "is_initialized", lambda: True)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return run.Ranks(Config(threads=1)), asked


def test_a_run_takes_the_gpu_of_its_rank_and_bf16_where_the_card_has_it(monkeypatch):
    """Bug: two ranks on one GPU; a T4 that trains in emulated bf16; a Mac's GPU not used."""
    ranks, asked = ranks_on(monkeypatch, "mps")
    assert asked == ["auto"] and ranks.device.type == "mps" and not ranks.bf16
    with ranks.autocast():
        assert not torch.is_autocast_enabled("mps")
    gpu_of(monkeypatch, (7, 5))
    ranks, asked = ranks_on(monkeypatch, "cuda:1", cuda=True, LOCAL_RANK="1", RANK="1",
                            WORLD_SIZE="2")
    assert asked == ["cuda:1"] and not ranks.bf16
    with pytest.raises(ValueError, match="--dtype bf16: Tesla T4 does not compute in bf16"):
        run.Ranks(Config(threads=1, dtype="bf16"))
    gpu_of(monkeypatch, (8, 0))
    assert run.Ranks(Config(threads=1)).bf16
    ranks, asked = ranks_on(monkeypatch, "cpu", WORLD_SIZE="2")
    assert asked == ["cpu"], "two processes cannot share a Mac's GPU"
