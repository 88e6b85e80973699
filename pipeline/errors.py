"""The user's mistake, told in one sentence, and the exit codes of every command.

Exit 0: done. 1: it ran and failed. 2: the user's mistake (one sentence on stderr, no traceback).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

EXIT_FAILED = 1
EXIT_USER_ERROR = 2


class UserError(Exception):
    """What was wrong, where, the valid choices, and what to type next: one sentence a problem."""


class RunFailed(Exception):
    """The command was right and the work failed; the message says what of it failed and what to do."""


class Unlucky(RunFailed):
    """It failed by a node, a network or another process: the same start may go well, so on SLURM the job comes back."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint such as ``did you mean 'lr'?``; the empty string where nothing is near."""
    import difflib  # late: only a mistake needs it

    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""


def tell(error: UserError | RunFailed) -> int:
    """Say it in its sentence on stderr; the exit code it deserves."""
    mistaken = isinstance(error, UserError)
    print(f"{'error' if mistaken else 'failed'}: {error}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR if mistaken else EXIT_FAILED


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave the process with the exit code its outcome deserves."""
    try:
        code = main() or 0
    except (UserError, RunFailed) as error:
        code = tell(error)
    except BrokenPipeError:  # `... | head` closed our stdout: nobody is left to tell
        sys.stderr.close()
        code = EXIT_FAILED
    except OSError as error:  # a full disk, a folder that is gone: the machine's state, not a mistake in the code
        if error.filename is None:
            raise
        print(f"failed: {error.filename}: {error.strerror}.", file=sys.stderr)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here.", file=sys.stderr)
        code = 130
    sys.exit(code)
