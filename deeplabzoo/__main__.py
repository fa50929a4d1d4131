"""`python -m deeplabzoo`."""

from deeplabzoo.cli import run

run()
