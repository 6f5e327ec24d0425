"""experiments/bench.py at toy size: every part runs, compares equal work, and writes what it says;
its numbers mean nothing here."""

import json
import os
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "experiments"))
import bench

KEYS = {"ratio", "ours", "peer", "peer_name", "unit"}


def test_every_part_runs_and_writes_its_record(tmp_path, capsys, monkeypatch):
    """Bug: a part that broke with the code it measures; a figure in the table that is not the one
    in the file."""
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    bench.main(["--quick", "--threads", "1", "--json", str(tmp_path / "b.json"), "P1", "P1b", "P2",
                "P2authors", "P3", "P4", "P5", "programs"])
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "b.json").read_text())
    for part in ("P1", "P2joint", "P2frozen", "P3", "P4", "P5hf", "P5static", "programs"):
        r = found[part]
        assert (
            KEYS <= r.keys() and min(r["ours"], r["peer"]) > 0 and r["spread"][0] <= r["spread"][1]
        )
        better = r["peer"] / r["ours"] if r["unit"] == "GB" else r["ours"] / r["peer"]
        assert r["ratio"] == pytest.approx(better)
    assert "--nanogpt" in found["P1b"]["not_measured"] and found["run"]["size"] == "quick"
    assert "--authors" in found["P2authors"]["not_measured"]
    turns = [side["side"] for side in found["sides"]]
    assert turns[:6] == ["ours", "peer", "ours", "peer", "peer", "ours"]
    said = capsys.readouterr().out
    assert (
        all(f"\n{part} " in said for part in found if part not in ("run", "sides"))
        and f"{found['P1']['ratio']:.2f}x" in said
    )


@pytest.mark.parametrize("part", ["P1group", "P1trl", "P1trlgroup", "P1pack", "grade"])
def test_public_trainers_and_graders_agree_with_ours(part, capsys):
    """Bug: a peer that trains other tokens, or reads a packed row as one text; verdicts that
    differ."""
    for name in ("math_verify",) if part == "grade" else ("transformers", "accelerate", "trl"):
        pytest.importorskip(name)
    found = bench.main(["--quick", "--threads", "1", part])[part]
    assert found["ratio"] > 0 and f"\n{part} " in capsys.readouterr().out


def test_growth_is_measured_for_each_dimension(capsys, monkeypatch):
    """Bug: a dimension that is listed and never varied. (In this process: its memory means nothing
    at toy size, and P3 takes its own.)"""
    def here(threads, act, *args, world=1):
        return [act(*args)] if act is not bench.step_of_rank else [(0, ([(0.5, 1.0)], []), world)]

    monkeypatch.setattr(bench, "apart", here)
    found = bench.main(["--quick", "--threads", "1", "scaling"])["scaling"]
    of_step, of_loss = found["step"]["points"], found["loss"]["points"]
    assert [(r["T"], r["V"]) for r in of_step] == [(16, 256), (32, 256), (16, 128), (16, 256)]
    assert [(r["tokens"], r["V"]) for r in of_loss] == [(32, 512), (64, 512), (32, 512), (32, 1024)]
    for kind, name in (("ranks", "ranks"), ("entropy", "samples"), ("text", "rows"),
                       ("scores", "problems")):
        small, large = found[kind]["points"]
        assert 0 < small[name] < large[name]
    assert found["ranks"]["exponents"]["ranks"] == pytest.approx([0, 1])
    assert bench.main(["--quick", "--threads", "1", "scaling-text"])["scaling"].keys() == {"text"}
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [r[:3] for r in said if r[0] == "loss"][:2] == [["loss", "tokens", "V"],
                                                           ["loss", "32", "512"]]
    assert ["exponent", "in", "ranks", "0.00", "1.00"] in said


def test_sides_that_compute_different_things_are_no_benchmark():
    """Bug: a fast side that leaves work away."""
    bench.same("losses", [1.0, 2.0], [1.0, 2.0 + 1e-9], 1e-6)
    with pytest.raises(SystemExit, match="losses differ, so their times say nothing"):
        bench.same("losses", [1.0, 2.0], [1.0, 2.1], 1e-6)
    with pytest.raises(SystemExit, match="tokens differ"):
        bench.same("tokens", [1, 2], [1, 2, 3], 0)


def test_an_unknown_part_is_refused_before_anything_runs():
    """Bug: a typo that costs ten minutes, or measures nothing and says so nowhere."""
    with pytest.raises(SystemExit, match="unknown part P9; expected some of P1, P1group"):
        bench.main(["P1", "P9"])


def test_what_is_for_a_gpu_runs_at_toy_size_and_is_not_measured_without_one(capsys):
    """Bug: a view that breaks on the rare day when there is a GPU; CPU figures as a GPU's."""
    pytest.importorskip("transformers")
    found = bench.main(["--quick", "--threads", "1", "gpu", "gpu-generate"])
    assert {"toy sft-steps", "toy joint", "toy frozen", "toy permuted",
            "toy sft-steps, transformers"} < found["gpu"].keys()
    assert found["gpu"]["toy joint"]["flops"] > 0
    assert set(found["gpu-generate"]) == {"CUDA graphs", "no graphs", "transformers"}
    if not torch.cuda.is_available():
        views = ["gpu", "gpu-generate"]
        found = bench.main(views)
        assert all(found[view] == {"not_measured": "no GPU here"} for view in views)
        assert capsys.readouterr().out.count("not measured: no GPU here") == 2
