"""The group of all commands. Nothing heavy is imported before a command runs, so that ``--help`` is quick."""

from __future__ import annotations

import click

from daskdecode._version import __version__
from daskdecode.cli.analysis import decode, demo
from daskdecode.cli.command import Group
from daskdecode.cli.search import search
from daskdecode.cli.study import convert, export, info, verify
from daskdecode.cli.submit import cancel, driver, logs, status, submit


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\n"
    "Try it, with no data of your own:   daskdecode demo\n"
    "On a BIDS folder:                   daskdecode convert study/ study.zarr\n"
    "                                    daskdecode decode study.zarr --labels face,cat --output results/\n",
)
@click.version_option(__version__, prog_name="daskdecode")
def main() -> None:
    """Decode fMRI out of core: convert once, then decode anything.

    Errors are one line on stderr. Exit status: 0 all well, 1 verify found differences or some subjects failed, 2 something you can
    mend, 130 interrupted.
    """


for _command in (demo, convert, info, verify, export, decode, search, submit, status, logs, cancel, driver):
    main.add_command(_command)
