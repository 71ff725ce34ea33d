"""`python -m gavel`, the command as launchers start it."""

from gavel.cli import main

if __name__ == "__main__":  # processes that are spawned import it, too
    main()
