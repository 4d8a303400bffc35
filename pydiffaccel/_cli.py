"""What the command lines share: parsing, exit codes, and errors as one sentence on stderr.

Exit codes: 0 ok, 1 failed (data, folders, files, the run itself), 2 bad usage (flags and values), 130 interrupted
by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

Options = TypeVar("Options")


class CommandError(Exception):
    """Something a user can put right: the message is one sentence, shown without a traceback; exit code 1."""


class UsageError(ValueError):
    """Flags that are wrong, or do not go together: shown without a traceback; exit code 2."""


def _sentence(box: str) -> str:
    """The message inside the box that tyro draws, on one line; empty where no box is found.

    A box has its title in the frame, or, where the terminal has no characters for a frame, above a first rule.
    """
    sections: list[list[str]] = [[]]
    framed = False
    for raw in box.splitlines():
        line = raw.strip().strip("│").strip()
        if line.startswith(("╭", "╰")):
            framed = True
        elif line and set(line) <= set("─-"):
            sections.append([])
        elif line:
            sections[-1].append(line)
    message = " ".join(sections[0] if framed else sections[min(1, len(sections) - 1)])
    if message.startswith("Missing from"):
        message = "missing argument: " + message.split(":", 1)[-1].strip()
    if message.startswith("Error parsing "):
        flag, _, rest = message.removeprefix("Error parsing ").partition(": ")
        message = f"{flag}: {rest}" if flag.startswith("--") else rest
    return message


def say_on_stderr(sentence: str) -> None:
    """Where a failure's sentence goes, unless ``run_command`` is told otherwise."""
    print(sentence, file=sys.stderr)


def _nearest(options: type, message: str) -> str:
    """What the unknown flags of a message were probably meant to be, as "; did you mean --seed?"; else empty."""
    known = [f"--{prefix}{field.name}" for field in dataclasses.fields(options) for prefix in ("", "no_")]
    if not message.startswith("Unrecognized options:"):
        return ""
    unknown = [word.partition("=")[0].replace("-", "_") for word in message.split() if word.startswith("--")]
    found = [near for flag in unknown for near in difflib.get_close_matches("--" + flag[2:].strip(","), known, 1)]
    return f"; did you mean {' '.join(found)}?" if found else ""


def parse(
    options: type[Options], argv: Sequence[str] | None, program: str, say: Callable[[str], None] = say_on_stderr
) -> Options:
    """The options that argv (default: sys.argv) spells; SystemExit 0 after --help, 2 with one sentence on bad usage."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                options, prog=program, args=argv, use_underscores=True, config=(tyro.conf.PositionalRequiredArgs,)
            )
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        message = _sentence(errors.getvalue()) or errors.getvalue().strip()
        say(f"{program}: {message}{_nearest(options, message) or '; see --help'}")
        raise SystemExit(BAD_USAGE) from None


def _reader_left() -> int:
    """Whoever read our output (as in ``| head``) has gone: end quietly, also while Python flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def run_command(
    options: type[Options],
    body: Callable[[Options], int],
    argv: Sequence[str] | None,
    *,
    program: str,
    say: Callable[[str], None] = say_on_stderr,
) -> int:
    """Parse, run, and turn every foreseeable failure into one sentence, handed to say, and an exit code."""
    with _sigterm_interrupts():
        return _run_command(options, body, argv, program, say)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does, unless someone else handles it; outside the main thread, nothing new."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run_command(
    options: type[Options],
    body: Callable[[Options], int],
    argv: Sequence[str] | None,
    program: str,
    say: Callable[[str], None],
) -> int:
    try:
        try:
            parsed = parse(options, argv, program, say)
        except SystemExit as exit_:
            return OK if exit_.code in (0, None) else BAD_USAGE
        return body(parsed)
    except BrokenPipeError:
        return _reader_left()
    except UsageError as error:
        say(f"{program}: {error}")
        return BAD_USAGE
    except CommandError as error:
        say(f"{program}: {error}")
        return FAILED
    except OSError as error:
        # A full disk or a folder without permission is no defect of the program: the system's sentence says it all.
        where = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        say(f"{program}: {error.strerror or error}{where}")
        return FAILED
    except KeyboardInterrupt as interrupt:
        say(f"{program}: interrupted{'; ' if interrupt.args else ''}{interrupt}")
        return INTERRUPTED


def parse_seeds(text: str) -> list[int]:
    """Seeds written as ``0-63``, ``7``, or several of these with commas.

    Raises:
        ValueError: the text is nothing of the kind, or names no or more than a million seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"seeds are written as 0-63 or 1,5,9, got {text!r}")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"a range of seeds runs upwards, got {part.strip()!r}")
        if high >= 2**63 or len(seeds) + high - low + 1 > 10**6:
            raise ValueError(f"at most a million seeds below 2**63 can be asked for at once, got {text!r}")
        seeds.extend(range(low, high + 1))
    return seeds


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """CPUs that a container's limit on processor time is worth, rounded up; None without a limit.

    Torch counts the machine's cores. Where a container may use two out of sixty-four, as many threads as cores would
    spend their time waiting for each other.
    """
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return max(1, math.ceil(int(quota) / int(period))) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Inside, torch computes with this many CPU threads; None is torch's choice, within the container's limit."""
    import torch

    before = torch.get_num_threads()
    if number is None:
        number = min(before, cpu_quota() or before)
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class StopFlag:
    """While active, the first SIGINT or SIGTERM only sets the flag, so that the work can end at a whole step.

    A second SIGINT interrupts at once. Outside the main thread signals cannot be caught: the flag then stays unset.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._previous: dict[int, object] = {}

    def _stop(self, signum: int, frame: object) -> None:
        if self.stopped and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = True

    def __enter__(self) -> StopFlag:
        with contextlib.suppress(ValueError):
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._stop)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
