#!/usr/bin/env bash
# Make .venv with rnow and everything that its tests need, in the versions of constraints.txt.
# Run by `make demo` and `make test`; safe to run again; leaves .venv/.ready behind when all is in place.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found. Debian/Ubuntu: apt-get install python3 python3-venv;" \
        "macOS: brew install python@3.12; or set PYTHON=/path/to/python3"
}

# A torch without CUDA is 200 MB instead of several GB. On macOS and on arm64 the plain build is that one.
install_torch() {
    local version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    if .venv/bin/python -c "import importlib.metadata as m; assert m.version('torch').split('+')[0] == '$version'" \
        2>/dev/null; then
        return
    fi
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        say "no GPU here: looking for a CPU build of torch $version"
        if .venv/bin/pip install --quiet --quiet "torch==$version+cpu" 2>/dev/null; then
            return
        fi
        if [ "$(uname -m)" = x86_64 ]; then
            say "none among pip's indexes: taking the default build, several GB. To avoid that, stop here and" \
                "set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds (its install page names it)"
        fi
    fi
    .venv/bin/pip install --quiet --quiet --constraint constraints.txt "torch==$version"
}

python=$(find_python)
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python has no venv module. Debian/Ubuntu: apt-get install python3-venv"

if [ ! -x .venv/bin/python ]; then
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
install_torch
say "installing rnow and its tested dependencies (a few minutes, once)"
.venv/bin/pip install --quiet --quiet --constraint constraints.txt --editable '.[test]' ||
    die "pip could not install the dependencies; the lines above say which. Without a network this cannot work"
touch .venv/.ready
say "done"
