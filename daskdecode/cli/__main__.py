"""``python -m daskdecode.cli``: the command line where its script is not on the path."""

from daskdecode.cli import run

run()
