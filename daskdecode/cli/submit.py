"""Commands that hand an analysis to a batch system, and follow it."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import click

from daskdecode.cli.command import INCOMPLETE, WHERE, Command, ComputingCommand, Failure, as_failure, print_json, scheduler, worker_count

_JOBS = click.option(
    "--jobs",
    default="daskdecode-jobs",
    show_default=True,
    envvar="DASKDECODE_JOBS",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that says how submissions go; every node has to see it.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")

_CHECKS: Final = ("verify",)
"""Commands whose exit status 1 ends a submission; of the others it says that some subjects failed and the others are done."""


def _split(ctx: click.Context, arguments: Sequence[str]) -> tuple[list[list[str]], list[bool]]:
    """Commands between ``--``, and whether each is for the workers, as it does not say itself where to work.

    Each is parsed as it will be, so that what is mistyped is said now.
    """
    commands: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            commands.append([])
        else:
            commands[-1].append(argument)
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    computing = [name for name, command in group.commands.items() if isinstance(command, ComputingCommand)]
    spread = []
    for command in commands:
        if not command or command[0] not in computing:
            said = f"{command[0]!r} is none that computes" if command else "one is empty"
            raise click.UsageError(
                f"Expected commands such as 'decode study.zarr --output results', but {said}: {', '.join(computing)}.", ctx
            )
        parsed = group.commands[command[0]].make_context(command[0], list(command[1:]), parent=ctx.find_root())
        spread.append(all(parsed.params[name] is None for name in WHERE))
    return commands, spread


@click.command(
    cls=Command,
    short_help="Hand an analysis to a batch system.",
    context_settings={"allow_interspersed_args": False},
    epilog="\b\n"
    "Examples:\n"
    "  daskdecode submit --cluster site.yaml -- decode study.zarr --labels face,cat --output results/\n"
    "  daskdecode submit --cluster site.yaml --n-workers 8 -- convert study/ study.zarr -- decode study.zarr --output results/\n"
    "  daskdecode submit --cluster site.yaml -- decode study.zarr --output results/ --scheduler local\n",
)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGS]... [-- COMMAND [ARGS]...]...")
@click.option("--cluster", metavar="FILE", help="The batch system and its jobs, as a YAML file says (docs/cluster.md).")
@click.option("--scheduler", metavar="WHERE", help="Or slurm, pbs, sge, lsf, htcondor, as Dask's jobqueue.yaml says.")
@click.option("--n-workers", metavar="N|MIN-MAX", callback=worker_count, help="Workers that the analysis asks for.")
@_JOBS
@_JSON
@click.pass_context
def submit(
    ctx: click.Context, /, arguments: Sequence[str], cluster: str | None, scheduler: str | None, n_workers: Any, jobs: Path, as_json: bool
) -> None:
    """Hand daskdecode commands to the batch system, and return at once.

    Commands are separated by -- and run one after another, in a job of their own that asks for workers; the first that fails ends
    it (subjects that fail do not: the others are done). Results are where the commands would put them here. A command that says itself
    where to work (--scheduler, --cluster or --n-workers after its --) works there: with --scheduler local on the cores of that one job.
    The others have the workers.
    """
    from daskdecode.cluster import submit as submissions
    from daskdecode.cluster.spec import read_spec

    if (cluster is None) == (scheduler is None):
        raise click.UsageError("Say which batch system: --cluster FILE or --scheduler slurm (one of them, before the --).", ctx)
    commands, spread = _split(ctx, arguments)
    spec = read_spec(scheduler if cluster is None else Path(cluster), {"n_workers": n_workers})
    found = submissions.submit(commands, spec, jobs, workers=spread)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        click.echo(found.id)
        click.echo(f"Job {found.batch_id} of {spec.kind}. Follow it with: daskdecode status {found.id}", err=True)


@click.command(
    cls=Command,
    short_help="How submissions go.",
    epilog="\b\nExamples:\n  daskdecode status\n  daskdecode status 20260131-120000-decode --json | jq -r .state\n",
)
@click.argument("id", required=False)
@_JOBS
@_JSON
def status(id: str | None, jobs: Path, as_json: bool) -> None:  # noqa: A002  # what users call it
    """Say how the submission ID goes, or all of them: queued, running, done, failed, cancelled or lost."""
    from daskdecode.cluster import submit as submissions

    found = submissions.statuses(jobs) if id is None else [submissions.status(jobs, id)]
    if as_json:
        every = [dataclasses.asdict(one) for one in found]
        print_json(every if id is None else every[0])
        return
    for one in found:
        click.echo(f"{one.id}  {one.state:<9}  {one.detail or one.command}")
    if not found:
        click.echo(f"No submissions in {jobs}.", err=True)


@click.command(cls=Command, short_help="What a submission logged.", epilog="\b\nExample:\n  daskdecode logs 20260131-120000-decode\n")
@click.argument("id")
@click.option("--workers", is_flag=True, help="Of its workers instead.")
@_JOBS
def logs(id: str, workers: bool, jobs: Path) -> None:  # noqa: A002
    """Print what the submission ID has logged until now."""
    from daskdecode.cluster import submit as submissions

    files = submissions.logs(jobs, id, workers=workers)
    for path in files:
        if len(files) > 1:
            click.echo(f"==> {path} <==")
        click.echo(path.read_text(errors="replace"), nl=False)
    if not files:
        click.echo("Nothing was logged yet.", err=True)


@click.command(cls=Command, short_help="End a submission.", epilog="\b\nExample:\n  daskdecode cancel 20260131-120000-decode\n")
@click.argument("id")
@_JOBS
def cancel(id: str, jobs: Path) -> None:  # noqa: A002
    """Cancel the submission ID and its workers. What it wrote is kept: submitted again, it goes on from there."""
    from daskdecode.cluster import submit as submissions

    found = submissions.cancel(jobs, id)
    click.echo(f"{found.id}  {found.state}" + (f"  {found.detail}" if found.detail else ""))


@click.command(cls=Command, hidden=True, epilog="\b\nExample:\n  daskdecode driver daskdecode-jobs/20260131-120000-decode\n")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_context
def driver(ctx: click.Context, /, folder: Path) -> None:
    """Run what was submitted; the batch system calls this."""
    from daskdecode.cluster import submit as submissions

    _interrupt_on_sigterm()
    group: Any = ctx.find_root().command
    exit_status = 1
    try:
        exit_status = _run_all(group, submissions.begin(folder), folder / submissions.CLUSTER)
    except KeyboardInterrupt:
        exit_status = 130
    except Exception as error:
        failure = error if isinstance(error, Failure) else as_failure(error)
        failure.show()
        exit_status = failure.exit_code
    finally:
        submissions.end(folder, exit_status)
    sys.exit(exit_status)


def _run_all(group: click.Group, job: dict[str, Any], cluster: Path) -> int:
    """Run the commands one after another; return the exit status of the first that fails, or 0.

    Commands for the workers that follow one another share them; none wait while a command works elsewhere. Subjects that fail stop
    nobody else: the commands that follow do the others, and the exit status tells in the end.
    """
    incomplete = []
    for spread, commands in itertools.groupby(zip(job["workers"], job["commands"], strict=True), itemgetter(0)):
        with scheduler(None, str(cluster) if spread else None, None):
            for _, command in commands:
                click.echo(f"$ daskdecode {shlex.join(command)}", err=True)
                ended = _exit_status(group, command)
                if ended == INCOMPLETE and command[0] not in _CHECKS:
                    incomplete.append(command[0])
                elif ended:
                    return ended
    if incomplete:
        click.echo(f"Some subjects failed ({', '.join(incomplete)}): the log names them. The others are done.", err=True)
    return INCOMPLETE if incomplete else 0


def _exit_status(group: click.Group, command: Sequence[str]) -> int:
    try:
        group.main(list(command), prog_name="daskdecode")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


def _interrupt_on_sigterm() -> None:
    """Batch systems end jobs with SIGTERM: as Ctrl-C does, it lets the driver cancel its workers."""
    import signal

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
