#!/bin/sh
# Makes the environment in .venv from the lock for this machine. Safe to run again: a stamp with the
# lock's checksum is written last, and an environment without the right stamp is made anew.
set -eu
cd "$(dirname "$0")/.."
venv=.venv

if [ -z "${GAVEL_LOCK:-}" ]; then
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then GAVEL_LOCK=cuda; else GAVEL_LOCK=cpu; fi
fi
lock=locks/$GAVEL_LOCK.txt
[ -f "$lock" ] || { echo "setup: there is no lock named $GAVEL_LOCK (GAVEL_LOCK is cpu or cuda)" >&2; exit 2; }

stamp="$venv/.gavel-$(cat "$lock" pyproject.toml | cksum | tr ' ' '-')"
[ -f "$stamp" ] && exit 0

python=
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || { echo "setup: Python 3.11 or newer (with venv) is needed; name it with PYTHON=..." >&2; exit 2; }

echo "setup: making $venv from $lock (a few minutes, about 4 GB)"
rm -rf "$venv"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$python" -m venv "$venv"
if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-deps -r "$lock" >"$log" 2>&1; then
    rm -rf "$venv"
    if grep -q "No matching distribution found for torch" "$log"; then
        echo "setup: pip found no CPU build of torch. Point PIP_EXTRA_INDEX_URL at PyTorch's own index of CPU wheels" >&2
        echo "setup: (its address stands on PyTorch's installation page, under Linux, Pip, CPU) and run make again." >&2
    elif grep -qi "no space left" "$log"; then
        echo "setup: the disk is full; about 8 GB are needed while installing." >&2
    else
        tail -n 15 "$log" >&2
        echo "setup: pip failed; the environment was removed again." >&2
    fi
    exit 1
fi
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e . || { rm -rf "$venv"; exit 1; }
touch "$stamp"
