"""A command on each rank of a run: one of them talks to the user, and a failed one ends at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pydiffaccel._cli import BAD_USAGE, INTERRUPTED, OK, Options, UsageError, run_command
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["end_process", "run_on_ranks"]


def run_on_ranks(
    options: type[Options], body: Callable[[Options, Ranks], int], argv: Sequence[str] | None, *, program: str
) -> int:
    """``run_command`` on each rank under torchrun: body is given its rank, and one rank talks to the user."""
    try:
        ranks = Ranks.from_environment()
    except UsageError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return BAD_USAGE
    with ranks.quietly():
        return run_command(options, lambda parsed: body(parsed, ranks), argv, program=program, say=ranks.say)


def end_process(code: int) -> NoReturn:
    """The end of a command's process, with its exit code.

    One of several ranks that failed ends at once: taking a broken exchange apart can end in an abort.
    """
    if code not in (OK, INTERRUPTED) and os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
