"""`python -m deeplabzoo`."""

from deeplabzoo.cli import main

main()
