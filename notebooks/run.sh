#!/usr/bin/env bash
# Executes the notebooks on a recording made here and a replay of it, as CI does.
#
# The Python environment lives outside the clone, in $TAPEDECK_VENV, and is made
# again only when requirements.txt changes.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/tapedeck-target}"
venv="${TAPEDECK_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/tapedeck-venv}"

if ! cmp --silent requirements.txt "$venv/requirements.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
  # Last, so that an installation that was cut short is made again.
  cp requirements.txt "$venv/requirements.txt"
fi

cargo build --quiet --workspace --bins
programs="$CARGO_TARGET_DIR/debug"
scratch="$(mktemp --directory)"
trap 'rm -rf "$scratch"' EXIT
"$programs/record" load --url 'sim:?ttft_ms=20&itl_ms=2&tokens=20' --prompt 'Tell me a story.' \
  --number 300 --rate 100 --no-report --json --out "$scratch/recording" > /dev/null
"$programs/replay" run "$scratch/recording" --url 'sim:?ttft_ms=20&itl_ms=3&tokens=20' \
  --no-report --json --out "$scratch/new" > /dev/null

export TAPEDECK_RECORDING="$scratch/recording" TAPEDECK_NEW="$scratch/new"
export TAPEDECK_ANALYZE="$programs/analyze"
export JUPYTER_RUNTIME_DIR="$scratch"
# Fonts are searched once per configuration folder, which takes seconds.
export MPLCONFIGDIR="$venv/matplotlib" MPLBACKEND=module://matplotlib_inline.backend_inline
for notebook in *.ipynb; do
  "$venv/bin/python" execute.py "$notebook"
done
