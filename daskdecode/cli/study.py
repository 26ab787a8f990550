"""Commands on study stores: make one, look at it, check it, get NIfTI back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import click

from daskdecode.cli.command import DIFFERENT, INCOMPLETE, Command, ComputingCommand, print_json
from daskdecode.cli.options import check_places


def _rois(_: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Split ``vt=masks/vt.nii.gz`` into name and file."""
    rois: dict[str, str] = {}
    for value in values:
        name, found, path = value.partition("=")
        if not (name and found and path):
            raise click.BadParameter(f"expected NAME=FILE, such as vt=masks/vt.nii.gz, but found {value!r}.", param=param)
        if name in rois:
            raise click.BadParameter(f"the name {name!r} is given twice.", param=param)
        rois[name] = path
    return rois


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items()) or "none"


def _masks(subject: Mapping[str, Any]) -> str:
    """Voxels of each mask that are kept, and of how many where some are not."""
    sizes = subject["mask_sizes"]
    counts = [
        f"{name} {n}" + (f" (of {sizes[name]}: the others are not kept)" if sizes[name] > n else "") for name, n in subject["masks"].items()
    ]
    return ", ".join(counts) or "none"


def _run_name(run: Mapping[str, Any]) -> str:
    return f"ses-{run['session']} {run['run']}" if run["session"] else str(run["run"])


def _repetition_time(subject: Mapping[str, Any]) -> str:
    """The repetition time, and that of each run which has another."""
    usual = subject["repetition_time"]
    others = [run for run in subject["runs"] if run["repetition_time"] != usual]
    each = [f"run {_run_name(run)}: {run['repetition_time']:g} s" for run in others]
    return f"TR {usual:g} s" + (f" ({', '.join(each)})" if each else "")


def _state(found: Mapping[str, Any]) -> str:
    if found["complete"]:
        return f"complete, but for {_number(len(found['failed']), 'subject')}" if found["failed"] else "complete"
    n = len(found["missing"])
    what = f"{_number(n, 'run')} missing" if n else "all runs are there, but it was not closed"
    return f"INCOMPLETE, {what}: convert again to resume"


def _describe(found: Mapping[str, Any]) -> str:
    """Say in words what a store holds."""
    lines = [f"{found['store']}: {_state(found)}, {_size(found['nbytes'])}, format {found['format_version']}"]
    lines += [f"subject {name}: NOT CONVERTED: {why}" for name, why in found["failed"].items()]
    for subject in found["subjects"]:
        shape = " x ".join(map(str, subject["shape"]))
        times = f"{subject['n_volumes']} volumes, {_repetition_time(subject)}"
        share = 100 * subject["n_voxels"] / math.prod(subject["shape"])
        lines += [
            f"subject {subject['subject']}: {_number(len(subject['runs']), 'run')}, {times}",
            f"  voxels   {subject['n_voxels']} of {shape} ({share:.0f} %)",
            *([f"  sessions {', '.join(subject['sessions'])}"] if subject["sessions"] else []),
            f"  labels   {_counts(subject['labels'])}",
            f"  masks    {_masks(subject)}",
        ]
        width = max((len(run["run"]) for run in subject["runs"]), default=0)
        for run in subject["runs"]:
            session = f"ses-{run['session']} " if run["session"] else ""
            doubtful = [f"{run[f'n_{kind}_voxels']} {kind} voxels" for kind in ("nonfinite", "constant") if run[f"n_{kind}_voxels"]]
            parts = [f"{run['n_volumes']:>5} volumes", run["dtype"], _size(run["nbytes"]), *doubtful]
            lines.append(f"  run {session}{run['run']:<{width}}  {'  '.join(parts)}")
    return "\n".join(lines)


@click.command(
    cls=ComputingCommand,
    short_help="Convert NIfTI or BIDS to a study store.",
    epilog="\b\n"
    "Examples:\n"
    "  daskdecode convert study/ study.zarr --task faces --space MNI152NLin2009cAsym\n"
    "  daskdecode convert bold.nii.gz haxby.zarr --labels labels.txt --mask brain.nii.gz --roi vt=mask4_vt.nii.gz\n",
)
@click.argument("source", type=click.Path())
@click.argument("store")
@click.option("--labels", metavar="FILE", type=click.Path(), help="For one 4-D image: a table with a label, and a run, for each volume.")
@click.option("--mask", default="auto", show_default=True, metavar="auto|none|FILE", help="Voxels to keep; FILE may contain {subject}.")
@click.option("--roi", "rois", multiple=True, metavar="NAME=FILE", callback=_rois, help="A region to keep by name; may be repeated.")
@click.option("--subject", "subjects", multiple=True, metavar="LABEL", help="Only this subject of a BIDS folder; may be repeated.")
@click.option("--session", "sessions", multiple=True, metavar="LABEL", help="Only this session; may be repeated.")
@click.option("--task", metavar="LABEL", help="Only this task.")
@click.option("--space", metavar="LABEL", help="Images in this space, such as MNI152NLin2009cAsym.")
@click.option("--desc", metavar="LABEL", help="Images of this description, such as preproc.")
@click.option("--hrf-delay", "hrf_delay_s", type=float, metavar="SECONDS", help="How long labels made from events trail the events.")
@click.option("--repetition-time", type=float, metavar="SECONDS", help="Time between volumes, where the files do not say or are wrong.")
@click.option("--overwrite", is_flag=True, help="Replace a study store that is there.")
@click.option("--no-resume", is_flag=True, help="Do not go on with an interrupted conversion.")
@click.option("--json", "as_json", is_flag=True, help="Print what the store holds as JSON.")
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    source: str,
    store: str,
    subjects: Sequence[str],
    sessions: Sequence[str],
    no_resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert SOURCE, a BIDS folder or one 4-D image, to the study store STORE.

    A conversion that was interrupted goes on where it stopped when the same command is given again. A subject of whom a file is damaged
    is named and left out, and the exit status is 1; the same command adds it once the file is mended.
    """
    from daskdecode.errors import FailedSubjectsError
    from daskdecode.store.convert import convert as convert_study
    from daskdecode.store.describe import describe

    which: dict[str, Any] = {"subjects": list(subjects) or None, "sessions": list(sessions) or None}
    # Each was told on stderr when it was found, and what is printed names them.
    with contextlib.suppress(FailedSubjectsError):
        convert_study(source, store, **which, resume=not no_resume, **ctx.obj, **options)
    found = describe(store)
    if as_json:
        print_json(found)
    else:
        click.echo(_describe(found))
    if found["failed"]:
        ctx.exit(INCOMPLETE)


@click.command(cls=Command, short_help="Say what a store holds.", epilog="\b\nExample:\n  daskdecode info study.zarr\n")
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(store: str, as_json: bool) -> None:
    """Say what STORE holds: subjects, runs, labels, masks, sizes."""
    from daskdecode.store.describe import describe

    found = describe(store)
    if as_json:
        print_json(found)
    else:
        click.echo(_describe(found))


@click.command(
    cls=ComputingCommand,
    check=check_places,
    short_help="Compare a store with its sources.",
    epilog="\b\nExample:\n  daskdecode verify study.zarr && echo all equal\n",
)
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, /, store: str, as_json: bool) -> None:
    """Read the sources of STORE again and compare every value; exit status 1 where anything differs."""
    from dataclasses import asdict

    from daskdecode.store.verify import verify as verify_store

    report = verify_store(store, **ctx.obj)
    if as_json:
        print_json(asdict(report) | {"ok": report.ok})
    else:
        click.echo(str(report))
    if not report.ok:
        ctx.exit(DIFFERENT)


@click.command(
    cls=ComputingCommand,
    short_help="Write a store back to NIfTI.",
    epilog="\b\nExamples:\n  daskdecode export study.zarr exported/\n  daskdecode export study.zarr sub-01.nii.gz --subject 01\n",
)
@click.argument("store")
@click.argument("out", type=click.Path())
@click.option("--subject", metavar="LABEL", help="Only this subject, as one image of the values as decoding reads them.")
@click.option("--json", "as_json", is_flag=True, help="Print the files as JSON.")
def export(store: str, out: str, subject: str | None, as_json: bool) -> None:
    """Write the images of STORE back to NIfTI, into the folder (or the one file) OUT.

    Every source file comes back with its own header, bit for bit inside the mask. With --subject, OUT is one image (.nii or .nii.gz)
    of all runs of that subject, one after another.
    """
    from daskdecode.store.export import export as export_store
    from daskdecode.store.open import open_subject

    written = export_store(store if subject is None else open_subject(store, subject), out)
    if as_json:
        print_json({"files": [str(path) for path in written]})
    else:
        for path in written:
            click.echo(str(path))
