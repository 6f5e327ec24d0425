"""What the stage `score` of a run asks, keeps and writes: rows as they come, scores.json, the
answers, the table. Scores on other data are put aside, never overwritten."""

import json
import os
import re
from collections import namedtuple
from dataclasses import asdict

from plumbing.answers import Answers, weights
from plumbing.files import parse_json, read_text, write_rows, write_text
from plumbing.report import score_table
from plumbing.scoring import digest, read_by

# A set of problems. spec: as --score-data names it; wrap(question) -> the text that a model reads,
# None: the question; judge(rows) -> rows with verdicts.
Questions = namedtuple("Questions", "name spec problems wrap judge")


class Scores:
    def __init__(self, run, sets):
        self.run, self.cfg, self.folder, self.ranks = run, run.cfg, run.folder, run.ranks
        self.sets, self.rows, self.answers, self.kept, self.digests = sets, [], {}, [], {}
        self.split = self.cfg.score_split
        if self.cfg.task == "text":
            self.split = ", ".join(questions.spec for questions in sets)
        n = sum(len(questions.problems) for questions in sets)
        self.folder.say(f"\nscore: {n:,} problems of {self.cfg.task}, {self.split}, greedy")
        self.asked = {}
        for name, _, problems, _, _ in sets:
            grader = getattr(problems[0], "grader", name)       # a built-in task has its own
            self.asked[name] = dict(name=name, n=len(problems), graded_as=grader,
                                    sha256=digest(problems))
            if self.cfg.task == "text":
                self.folder.say(f"  {name}: {len(problems):,} problems, graded as {grader}")

    def begin(self, model, paths, questions, share, **how):
        """The file for the rows of a model (of the checkpoints `paths`) on this rank's share."""
        for path in paths:
            if path not in self.digests:
                self.digests[path] = weights(path)
        kept = Answers(
            self.folder.path("rows"),
            f"{model}-{questions.name}-{self.ranks.rank}of{self.ranks.world}", questions.judge,
            weights=[self.digests[path] for path in paths], device=self.ranks.device.type,
            dtype=self.ranks.dtype_name, asked=self.asked[questions.name], **how,
            **read_by(share, questions.wrap))
        self.kept.append(kept)
        if kept.said:
            self.folder.say(f"  {model}, {questions.name}: {len(share):,} problems{kept.said}")
        return kept

    def add(self, answers, **row):
        """A model's judged rows and its row of the table."""
        self.rows.append(dict(row, split=self.split, digest=self.digests[row["checkpoint"]]))
        self.answers[row["model"]] = answers

    def write(self):
        """scores.json and answers/, once all models are scored."""
        if self.ranks.rank > 0:
            return
        self._put_aside()
        for model, answers in self.answers.items():
            write_rows(self.folder.path("answers", f"{model}.jsonl"), answers)
        record = dict(rows=self.rows, sets=list(self.asked.values()), lam=self.cfg.lam,
                      commit=self.folder.commit, device=self.ranks.device_name,
                      dtype=self.ranks.dtype_name, config=asdict(self.cfg))
        write_text(self.folder.path("scores.json"), json.dumps(record, indent=1))

    def _put_aside(self):
        """Earlier scores on other data get a name of their own: scores-SETS.json, answers-SETS/."""
        if not os.path.exists(self.folder.path("scores.json")):
            return
        old = parse_json(read_text(self.folder.path("scores.json")))
        first, sets = old["rows"][0], list(self.asked.values())
        same = first["split"] == self.split and first["n"] == self.rows[0]["n"]
        if same and old.get("sets", sets) == sets:
            return
        names = [each["name"] for each in old.get("sets", [])] or [first["split"]]
        mark = re.sub(r"[^\w.-]+", "_", "-".join(names))
        number = 1
        while os.path.exists(self.folder.path(f"scores-{mark}-{number}.json")):
            number += 1
        new = self.folder.path(f"scores-{mark}-{number}.json")
        os.rename(self.folder.path("scores.json"), new)
        if os.path.exists(self.folder.path("answers")):
            os.rename(self.folder.path("answers"), self.folder.path(f"answers-{mark}-{number}"))
        self.folder.say(f"  the scores on {first['split']} are now in {new}")

    def close(self):
        """Say the table; rows of these models under other settings or code go. Those of today stay:
        a scoring after one more arm answers nothing twice."""
        self.folder.say(f"\n{score_table(self.rows)}\n\n{self.folder.path('report.html')} shows "
                        "all of it")
        self.ranks.barrier()
        for kept in self.kept:
            kept.remove_others()
        errors = sum(r["errors"] for r in self.rows)
        if errors:
            raise ValueError(f"{errors} programs could not be judged (status error in "
                             f"{self.folder.path('answers')}); they count neither way")
