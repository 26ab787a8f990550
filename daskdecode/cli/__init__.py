"""The command line: commands parse, call the library and print; they hold no logic."""

import sys


def run() -> None:
    """Run a command, as the script ``daskdecode`` does; Ctrl-C is one line also while what tells it otherwise is imported."""
    try:
        from daskdecode.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("Error: Interrupted.\n")
        sys.exit(130)
    main(prog_name="daskdecode")
