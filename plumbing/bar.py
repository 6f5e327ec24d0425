"""Progress bars, by tqdm, for whatever may take more than two seconds.

On a terminal it is a bar, from the first second on; in a pipe or a log file a line every 30
seconds; of several ranks the first one shows it. A thread draws, so that a bar moves and tells the
time while one long step is at work.
"""

import os
import shutil
import sys
import threading
import time

FIRST, EVERY, LINES = 1.0, 0.5, 30.0    # seconds: to the first bar, from bar to bar, line to line
FORM = "{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
OPEN = []                               # the bars that are at work, the innermost last


class Bar:
    """with Bar(total, "answers", "answer") as bar: ... bar.add(5)"""

    def __init__(self, total, what, unit):
        self.total, self.what, self.unit, self.done, self.share = total, what, unit, 0, 0.0
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._draw, daemon=True)

    def add(self, n=1):
        """n more things are done."""
        with self.lock:                 # several threads may add
            self.done, self.share = self.done + n, 0.0

    def __enter__(self):
        OPEN.append(self)
        if int(os.environ.get("RANK", 0)) == 0:
            self.thread.start()
        return self

    def __exit__(self, *error):
        OPEN.remove(self)
        self.ended.set()
        if self.thread.ident:
            self.thread.join()

    def _draw(self):
        started, terminal, drawn = time.time(), sys.stderr.isatty(), False
        wait = FIRST if terminal else LINES
        while not self.ended.wait(wait):
            from tqdm import tqdm  # it comes with `datasets`; a run that is quick needs none of it
            if OPEN[-1:] != [self]:     # one at a time, the innermost
                continue
            width = shutil.get_terminal_size().columns if terminal else 100
            text = tqdm.format_meter(self.done + self.share, self.total, time.time() - started,
                                     ncols=width, prefix=self.what, ascii=not terminal,
                                     unit=self.unit, bar_format=FORM)
            print(f"\r{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr,
                  flush=True)
            wait, drawn = EVERY if terminal else LINES, True
        if terminal and drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)      # the line is empty again


def bar(items, what, unit):
    """Iterate over items (a list, say) under a Bar."""
    with Bar(len(items), what, unit) as shown:
        for item in items:
            yield item
            shown.add()


def tick(share):
    """Tell the innermost bar how much is done of what is being done now, in its units: of a batch
    of 32 answers, half of whose tokens are there, 16."""
    if OPEN:
        OPEN[-1].share = share
