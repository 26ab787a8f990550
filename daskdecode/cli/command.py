"""What all commands share: errors in one line with an exit status that says whose fault it is, notes, progress."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Final, NoReturn

import click

from daskdecode.errors import DaskDecodeError

DIFFERENT: Final = 1
"""Exit status of ``verify`` where the store differs from its sources."""
INCOMPLETE: Final = 1
"""Exit status where some subjects of a study failed and the others are done."""
MENDABLE: Final = 2
"""Exit status for what the user can mend: a wrong option, a missing file, data that make no decodable problem."""
FAULT: Final = 70
"""Exit status for a fault of daskdecode (``EX_SOFTWARE`` of sysexits.h)."""
INTERRUPTED: Final = 130
"""Exit status after Ctrl-C (128 + SIGINT, as shells count)."""

_OPTIONS: Final = {
    r"\bpass resume=True to go on with it": "leave out --no-resume to go on with it",
    r"\bPass resume=True to go on with it": "Leave out --no-resume to go on with it",
    r"\b(Give|give) a single setting \(param_grid=\{[^}]*\}\), ": r"\1 ",
    r"\bPass (?=[a-z_]+=)": "Give ",
    r"\bpass (?=[a-z_]+=)": "give ",
    r"\b(?:with |passing )?overwrite=True": "--overwrite",
    r"\bresume=False": "--no-resume",
    r"\bmask=<image or path>": "--mask FILE",
    r"\bmask='(auto|none)'": r"--mask \1",
    r"\brois=": "--roi",
    r"\btune='(nested|held_out)'": r"--tune \1",
    r"\bnested=False(?: \(optimistic\))?": "--no-nested",
    r"\bmethod='(grid|random|hyperband)'": r"--method \1",
    r"\broute='(auto|stream)'": r"--route \1",
    r"\bstandardize='(\w+)', or None": r"--standardize \1, or none",
    r"\bstandardize='(\w+)'": r"--standardize \1",
    r", such as Decoder\(SGDClassifier\(loss='hinge'\)\)": ": --estimator sgd",
    r"\bDecoder\('logistic'\)": "--estimator logistic",
    r"\bcall dd\.connect\(\) first \(or dd\.connect\('tcp://\.\.\.'\), or distributed\.Client\(\)\)": (
        "give --scheduler local, or another that has workers"
    ),
    r", or pass groups=": "",
    r"\bn_passes=": "--n-passes",
    r"\b(?:takes no )error_score\b": "takes no --error-score",
    r"\berror_score=(?:np\.)?'?(nan|raise)'?": r"--error-score \1",
    r"\bexchange='(within_run|blocks)'": r"--exchange \1",
    r"\brandom_state=(?=[\s,.;:)]|$)": "--seed",
    r"\b(labels|task|space|desc|mask|subject|session|estimator|cv|tune|scoring|standardize|confounds|engine)=(?=[\s,.;:)]|$)": r"--\1",
    r"\brepetition_time=(?=[\s,.;:)]|$)": "--repetition-time",
    r"\bmemory_budget\b=?": "--memory-budget",
    r"\bscreening_percentile=(?=[\s,.;:)]|$)": "--screening-percentile",
    r"\bn_workers=(?=[\s,.;:)]|$)": "--n-workers",
    r"\b(?:daskdecode|dd)\.convert\(source, store\)": "daskdecode convert SOURCE STORE",
}
"""Advice of the library by regular expression, and what to type instead."""


class Failure(click.ClickException):
    """An error as the user sees it: one line on stderr and an exit status."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class and reads it from the instance


def as_failure(error: BaseException) -> Failure:
    """Put an exception into one line, and decide whether the user can mend it."""
    if isinstance(error, click.UsageError):
        help_text = f" See {error.ctx.command_path} --help." if error.ctx else ""
        return Failure(error.format_message() + help_text, MENDABLE)
    if isinstance(error, DaskDecodeError):
        return Failure(in_options(str(error)), MENDABLE)
    if isinstance(error, OSError):
        named = error.filename is not None and error.strerror is not None
        return Failure(f"{error.filename}: {error.strerror}." if named else str(error), MENDABLE)
    if isinstance(error, MemoryError):
        return Failure("There is not enough memory. Give --memory-budget, or select fewer voxels or volumes.", MENDABLE)
    return Failure(
        f"{type(error).__name__}: {error} - this is a fault of daskdecode. Run again with --debug and report what it says.", FAULT
    )


def in_options(message: str) -> str:
    """Say advice that names arguments of Python functions in options of the command line."""
    for pattern, option in _OPTIONS.items():
        message = re.sub(pattern, option, message)
    return message


@contextlib.contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Show what the library warns of in one line each, and leave out what other libraries warn of, which a user cannot act upon."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"Note: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


class Command(click.Command):
    """A command whose errors are one line, and which takes ``--debug`` and ``--no-progress``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--no-progress"], is_flag=True, help="Show no progress bars."),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with what it needs to know in ``ctx.obj``; errors become :class:`Failure` unless ``--debug`` is given."""
        ctx.obj = {"progress": not ctx.params.pop("no_progress")}
        if ctx.params.pop("debug"):
            return self._run(ctx)
        try:
            with notes_on_stderr():
                return self._run(ctx)
        except (click.exceptions.Exit, click.Abort, Failure):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output has gone; click ends quietly
            raise as_failure(error) from None

    def _run(self, ctx: click.Context) -> Any:
        return super().invoke(ctx)


WHERE: Final = ("scheduler", "cluster", "n_workers")
"""Parameters of a command that say where it works."""


class ComputingCommand(Command):
    """A command that does its work where ``--scheduler`` or ``--cluster`` says.

    Parameters
    ----------
    check : callable, optional
        Called with all parameters of the command before workers are asked for, which may queue for hours: what can be known to be wrong
        is said now.
    """

    def __init__(self, *args: Any, check: Callable[..., None] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check = check
        where = "threads, local (processes), slurm, pbs, sge, lsf, htcondor, kubernetes, gateway, or the address of a scheduler"
        self.params[-2:-2] = [
            click.Option(["--scheduler"], metavar="WHERE", help=f"Where to work: {where}.  [default: threads]"),
            click.Option(["--cluster"], metavar="FILE", help="Where to work, as a YAML file says (docs/cluster.md)."),
            click.Option(["--n-workers"], metavar="N|MIN-MAX", callback=worker_count, help="Workers; of threads, how many."),
        ]

    def _run(self, ctx: click.Context) -> Any:
        where = [ctx.params.pop(name) for name in WHERE]
        if self.check is not None and where[:2] != [None, None]:
            self.check(**ctx.params)
        with scheduler(*where):
            return super()._run(ctx)


@contextlib.contextmanager
def scheduler(where: str | None, file: str | None, n_workers: int | tuple[int, int] | None) -> Iterator[None]:
    """Work where a user says, as long as the block runs."""
    if where is not None and file is not None:
        raise click.UsageError("--scheduler and --cluster both say where to work: give one of them.")
    if (where, file) == (None, None) and isinstance(n_workers, tuple):
        raise click.UsageError("Threads do not come and go: give one number to --n-workers, or say where to work with --scheduler.")
    if file is None and where in (None, "threads") and not isinstance(n_workers, tuple):
        # Dask's own threads: there at once, and nothing has to be sent to them.
        with contextlib.nullcontext() if (where, n_workers) == (None, None) else _threads(n_workers):
            yield
        return
    from pathlib import Path

    from daskdecode.cluster.connect import connect  # not quick to import

    with (
        _silent_once_interrupted(),
        connect(where if file is None else Path(file), n_workers=n_workers),  # type: ignore[arg-type]  # one of them is there
    ):
        yield


@contextlib.contextmanager
def _silent_once_interrupted() -> Iterator[None]:
    """Have other libraries log nothing from Ctrl-C on: tracebacks of what it cuts off, at once and until the process ends.

    What daskdecode says is heard: jobs of a batch system may be left.
    """

    def interrupted(number: int, frame: FrameType | None) -> None:
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] != "daskdecode":
                logging.getLogger(name).disabled = True
        signal.default_int_handler(number, frame)

    is_main = threading.current_thread() is threading.main_thread()  # no other gets Ctrl-C, or may say what becomes of it
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored (nohup), or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _threads(n: int | None) -> Any:
    import dask

    return dask.config.set({"scheduler": "threads"} | ({} if n is None else {"num_workers": n}))


def worker_count(_: click.Context, param: click.Parameter, value: str | None) -> int | tuple[int, int] | None:
    """Read ``4``, or ``1-20`` for as many between them as there is work for."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
    fewest, most = (int(n) if n else None for n in found.groups()) if found else (None, None)
    if fewest is None or (most is None and fewest < 1) or (most is not None and most < max(1, fewest)):
        raise click.BadParameter(
            f"expected a number of workers, or the fewest and the most such as 1-20, but found {value!r}.", param=param
        )
    return fewest if most is None else (fewest, most)


class Group(click.Group):
    """The commands, in the order in which they are used rather than of the alphabet."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names as they were added."""
        return list(self.commands)

    def main(  # type: ignore[override]  # the overloads of click tell apart only what is returned
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run, and end with the exit status; usage errors are one line too, and Ctrl-C is 130."""
        if not extra.pop("standalone_mode", True):
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, standalone_mode=False, **extra)
        except click.Abort:
            _end(Failure("Interrupted. Nothing half-written is left; what was begun goes on when it is started again.", INTERRUPTED))
        except Failure as failure:
            _end(failure)
        except click.UsageError as error:
            _end(as_failure(error))
        sys.exit(status if isinstance(status, int) else 0)


def _end(failure: Failure) -> NoReturn:
    failure.show()
    sys.exit(failure.exit_code)


@contextlib.contextmanager
def progress_bar(description: str, *, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Give a callback ``(done, total)`` that moves a bar on stderr, shown once the block has taken two seconds."""
    from daskdecode.progress import watch  # not quick to import

    state: tuple[int, int | None] = (0, None)

    def moved(done: int, total: int) -> None:
        nonlocal state
        state = (done, total)

    with watch(description, lambda: state, progress=show):
        yield moved


def print_json(value: Any) -> None:
    """Print JSON, the same for the same value."""
    import json

    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
