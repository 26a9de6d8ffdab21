#!/usr/bin/env bash
# A CUDA compiler that is pinned on PyPI does not stay the one that was pinned, and then compiles nothing.
#
# cuda-toolkit[nvcc]==13.0.2 names nvidia-cuda-nvcc 13.0.88 exactly, but that wheel asks for nvidia-nvvm (which has
# cicc, the compiler proper), nvidia-cuda-crt and nvidia-cuda-runtime of any version. pip takes the newest, today
# 13.5.37, and `pip check` is content: the 13.5 cicc writes PTX of version 9.5, the 13.0 ptxas knows 9.0, and even an
# empty kernel ends in "Unsupported .version 9.5". A requirement that gave a working compiler when it was written
# gives a broken one with no line changed. The cure is to pin the three as well.
# Seen on 2026-11-28, x86-64 Linux; it needs a g++ that nvcc 13.0 takes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf '__global__ void kernel() {}\nvoid launch() { kernel<<<1, 1>>>(); }\n' > empty.cu

compile() { # NAME PACKAGE...: a fresh environment with these packages, and the empty kernel compiled in it
  local name=$1 site
  shift
  python3 -m venv "$name"
  "$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  site=$("$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "== $name"
  "$name/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -E '^(cuda-toolkit|nvidia-)'
  echo "pip check: $("$name/bin/python" -m pip check)"
  grep '^Requires-Dist' "$site"/nvidia_cuda_nvcc-*.dist-info/METADATA | tr -d '\r'
  "$site/nvidia/cu13/bin/nvcc" --version | grep release
  if "$site/nvidia/cu13/bin/nvcc" -c empty.cu -o "$name.o" 2>&1; then echo compiled; else echo "nvcc failed"; fi
}

# What pip resolves today is written out, so that it stays what is shown.
toolkit='cuda-toolkit[nvcc]==13.0.2'
compile resolved "$toolkit" nvidia-nvvm==13.5.37 nvidia-cuda-crt==13.5.37 nvidia-cuda-runtime==13.5.37 | tee resolved.txt
compile pinned "$toolkit" nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 | tee pinned.txt

for unpinned in nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime; do
  grep -qx "Requires-Dist: $unpinned" resolved.txt # no version
done
grep -q 'pip check: No broken requirements found' resolved.txt
grep -q "Unsupported .version 9.5; current version is '9.0'" resolved.txt
grep -qx compiled pinned.txt
echo "still so: nvcc 13.0 with the newest nvidia-nvvm compiles nothing, and pip sees no conflict"
