"""The command line: errors that a user can mend become one sentence, in this one place."""

import functools
import os


def program(name):
    """Decorator of a main(): a ValueError or OSError inside ends the program with one sentence.

    The sentence is "name: what was expected, what was found, the way out". With WMSS_TRACEBACK=1 in
    the environment the error is shown as Python shows it, with the lines that led to it.
    """
    def decorate(main):
        @functools.wraps(main)
        def guarded(*args, **kwargs):
            try:
                return main(*args, **kwargs)
            except (ValueError, OSError) as e:
                if os.environ.get("WMSS_TRACEBACK"):
                    raise
                message = str(e)
                if not message.startswith(name):
                    message = f"{name}: {message}"
                raise SystemExit(message) from None
        return guarded
    return decorate
