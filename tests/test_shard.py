"""plumbing/shard.py: ranks that hold a shard of the models each train what one process trains, and
leave the same files."""

from functools import partial

import pytest
import torch
from forks import torchrun
from runs import (
    RATES,
    TINY,
    clean_set,
    from_m1,
    interrupted,
    records,
    scores,
    trace,
    weights,
)

import train_wmss
from data import micro_batches
from model import load_checkpoint
from plumbing.run import Ranks
from plumbing.tokenizer import toy_encoding

ARMS = ("wmss", "frozen", "permuted")
# Few positions a pass: then ranks need different numbers of passes for their shares of a step
WHOLE = ("--gap", "both", *RATES, "--arm", *ARMS, "--tokens-per-batch", "60", "--val-share", "0.3")
NEIGHBOURS = ("dft", "focal", "distilled", "reweighted")
ROWLESS = ("--batch-size", "1", "--clean", "6")         # two of three ranks never have a row


def in_shards(whole, flags):
    """What each of three ranks does: six runs, of which only the last one ends the processes."""
    fsdp, close = ["--parallel", "fsdp"], Ranks.close
    Ranks.close = Ranks.barrier
    train_wmss.main([*whole, *fsdp, "--name", "whole", "--checkpointing"])
    interrupted(1, *flags, "--name", "from-ddp")
    interrupted(2, *flags, "--name", "from-ddp", "--resume", *fsdp)
    train_wmss.main([*flags, "--name", "from-one", "--resume", *fsdp])
    train_wmss.main([*flags, "--name", "rowless-shards", *fsdp, *ROWLESS])
    train_wmss.main([*flags, "--name", "neighbours", *fsdp, "--dtype", "bf16", "--arm",
                     *NEIGHBOURS])
    Ranks.close = close
    train_wmss.main([*flags, "--name", "bf16", *fsdp, "--dtype", "bf16"])


@pytest.fixture(scope="module")
def shards(trained, some_settled, tmp_path_factory):
    """out/ with the runs `one` of one process and `whole` of three ranks, and three of the arm
    wmss: from-one was begun by one process and ended by shards, from-ddp was begun by three ranks,
    gone on with by shards and ended by one process, bf16 is of shards alone.

    Three ranks: neither 98 tokens nor a width of 16 nor 8 samples are a multiple of that.
    """
    folder = tmp_path_factory.mktemp("shards")
    whole = [*TINY, *WHOLE, *some_settled]
    flags = [*TINY, *from_m1(trained), *some_settled, "--gap", "both", "--arm", "wmss",
             "--save-every", "1"]
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        train_wmss.main([*whole, "--name", "one"])
        interrupted(2, *flags, "--name", "from-one")
        done = torchrun(partial(in_shards, whole, flags), folder, 3)
        assert done.returncode == 0, done.stderr[-30000:]
        train_wmss.main([*flags, "--name", "from-ddp", "--resume"])
        train_wmss.main([*flags, "--name", "rowless", *ROWLESS])
    return folder / "out"


def close(a, b, atol=2e-5):
    """Whether two checkpoints hold the same weights, but for the order of sums. (The rate is 1e-3,
    and AdamW makes large steps of tiny gradients, their rounding included.)"""
    a, b = weights(a), weights(b)
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol)


def test_ranks_with_shards_train_as_one_process(shards):
    """Bug: a mean over ranks taken for a sum, gradients of the last pass alone, a clip by the norm
    of a shard, ranks that wait for each other over another number of passes, shards of unequal
    sizes, a frozen model that is trained, a file that holds a shard."""
    one, three = shards / "one", shards / "whole"
    for arm in ("base", "sft", *ARMS):
        assert trace(one, arm) == pytest.approx(trace(three, arm), rel=1e-5)
    for name in ("base", "sft", "weak", *ARMS):
        close(one / f"{name}.pt", three / f"{name}.pt")
    assert [r["model"] for r in scores(one)] == [r["model"] for r in scores(three)]


def test_ranks_of_that_run_do_need_different_numbers_of_passes():
    """Bug: a test of ranks that wait for each other in which none has to."""
    samples = clean_set(toy_encoding(), 24, 0)[:8]
    assert len({len(micro_batches(samples, 64, rank, 3, 60)) for rank in range(3)}) > 1


def test_the_log_says_of_shards_what_it_says_of_whole_models(shards):
    """Bug: the norm of rank 0's shard in the log, or what a third of the head says; the validation
    loss of one rank's share, or ranks that wait for each other in it."""
    for arm, trained_models in (("wmss", ("strong", "weak")), ("frozen", ("strong",))):
        one, three = ([r for r in records(shards / name) if r.get("arm") == arm]
                      for name in ("one", "whole"))
        assert len(one) == len(three) > 0
        for a, b in zip(one, three, strict=True):
            assert a.keys() == b.keys()
            assert b["gnorm"] == pytest.approx(a["gnorm"], rel=1e-4 if b["step"] > 1 else 2e-6)
            norms = [b[f"gnorm_{name}"] for name in trained_models]
            assert b["gnorm"] ** 2 == pytest.approx(sum(n * n for n in norms), rel=1e-4)
            assert 0 < b["p_target"] < 1 and sum(b["codes"]) > 0
            assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-5)


def test_a_run_goes_on_with_shards_and_without(shards, trained):
    """Bug: moments that are a shard's, or in another order than the parameters'; weights of which
    each rank loads its own."""
    close(shards / "from-one" / "wmss.pt", shards / "from-ddp" / "wmss.pt")
    close(shards / "from-one" / "weak.pt", shards / "from-ddp" / "weak.pt")
    a, b = trace(shards / "from-one", "wmss"), trace(shards / "from-ddp", "wmss")
    assert a == pytest.approx(b, rel=1e-5) and len(a) == 3


def test_a_rank_without_a_row_trains_its_shard_along(shards):
    """Bug: a rank that has nothing to watch leaves the others waiting for its part of the head."""
    one, three = shards / "rowless", shards / "rowless-shards"
    assert trace(one, "wmss") == pytest.approx(trace(three, "wmss"), rel=1e-5)
    assert len(trace(one, "wmss")) == 6
    close(one / "wmss.pt", three / "wmss.pt")


def test_shards_compute_in_bf16_where_they_are_told_to(shards):
    """Bug: autocast left off and no policy in its place; weights that are saved in bf16."""
    exact, half = (trace(shards / name, "wmss") for name in ("from-one", "bf16"))
    assert half == pytest.approx(exact, rel=5e-3)
    assert half != pytest.approx(exact, rel=1e-6)
    assert all(w.dtype == torch.float32 for w in weights(shards / "bf16" / "wmss.pt").values())


def test_losses_beside_the_method_take_shards_in_bf16(shards, trained, monkeypatch, tmp_path):
    """Bug: hidden states in bf16 and a head in fp32, in the default of a GPU's node."""
    monkeypatch.chdir(tmp_path)
    train_wmss.main([*TINY, *from_m1(trained), "--gap", "both", "--dtype", "bf16", "--arm",
                     *NEIGHBOURS, "--name", "one"])
    for arm in NEIGHBOURS:
        one, three = (trace(out / name, arm) for out, name in (
            (tmp_path / "out", "one"), (shards, "neighbours")))
        assert one and three == pytest.approx(one, rel=5e-3), arm


def test_on_the_meta_device_no_weight_is_read(trained, hf_folder):
    """Bug: each rank of a node reads the whole model into its memory."""
    for path in (trained / "wmss.pt", hf_folder):
        model, _ = load_checkpoint(path, "meta")
        whole, _ = load_checkpoint(path)
        assert all(p.is_meta for p in model.parameters()) and not model.cos.is_meta
        assert model.lm_head.weight is model.embed_tokens.weight
        assert [(n, p.shape) for n, p in model.named_parameters()] == \
            [(n, p.shape) for n, p in whole.named_parameters()]
