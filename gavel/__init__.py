"""gavel's foundation: records, run directories, templates, sources, engines and the command line."""

from pathlib import Path

#: Where the data folders (`prompts/`, `demo/`) lie, found from the package, never from the working directory.
HOME = Path(__file__).resolve().parent.parent
