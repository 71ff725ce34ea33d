"""`python -m gavel`, the command as launchers start it."""

from gavel.cli import main

main()
