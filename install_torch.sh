#!/bin/sh
# Install PyTorch into the environment of the Python given: the CPU build where no GPU is found,
# because the usual Linux build brings several gigabytes of CUDA along.
set -eu
python=$1
version=$(sed -n 's/^torch==//p' constraints.txt)

if "$python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$version')" 2>/dev/null; then
    exit 0
fi
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    echo "a GPU is here: installing torch $version with CUDA"
    exec "$python" -m pip install --quiet "torch==$version"
fi
echo "no GPU found: installing the CPU build of torch $version"
"$python" -m pip install --quiet "torch==$version+cpu" 2>/dev/null ||
    "$python" -m pip install --quiet "torch==$version" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
    "$python" -m pip install --quiet "torch==$version"
