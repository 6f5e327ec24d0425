"""Progress bars, by tqdm, for whatever takes more than two seconds."""

import os
import sys


def bar(items, what, unit="it"):
    """Iterate over items; show after two seconds how far this is and how long it will take.

    On a terminal it is a bar, in a pipe or a log file a line every 30 seconds; of several ranks
    the first one shows it. `what` is done to the items, "entropies" say.
    """
    from tqdm import tqdm  # it comes with `datasets`; here: a run that is quick needs none of it
    terminal = sys.stderr.isatty()
    return tqdm(items, desc=what, unit=unit, delay=2, leave=False, dynamic_ncols=terminal,
                mininterval=0.2 if terminal else 30, maxinterval=30,
                disable=int(os.environ.get("RANK", 0)) > 0)
