#!/usr/bin/env bash
# torch 2.13.0: after one line of the precision API that torch recommends since 2.9, torch.backends.cudnn.flags, its
# own context manager, does not do what it is asked for, and raises.
#
# A library that wants exact, repeatable convolutions writes `with torch.backends.cudnn.flags(enabled=True,
# deterministic=True, allow_tf32=False)`. That works until anybody in the process, a plug-in for example, sets
#   - torch.backends.fp32_precision = "tf32": inside the block convolutions are still set to TF32, so allow_tf32=False
#     has done nothing; the block raises when it is left, whatever it computed;
#   - torch.backends.cudnn.fp32_precision = "ieee", which asks for the very same as the block does: it raises before
#     the block begins.
# It surprises because nobody mixes the two ways in one place, because asking twice for full precision is what fails,
# and because it does so on a CPU, too, where cuDNN is never called. What works with both: set cudnn.deterministic and
# cudnn.conv.fp32_precision = "ieee", and put them back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6
cat > "$folder/try.py" <<'PYTHON'
import sys
import torch

setting, cudnn = sys.argv[1], torch.backends.cudnn
exec(setting)
where, inside = "before the block", None
try:
    with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        where, inside = "after the block", cudnn.conv.fp32_precision
        torch.nn.functional.conv2d(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 3, 3))
    where = "nothing"
except RuntimeError as error:
    where += f": {type(error).__name__}: {str(error)[:76]}..."
print(f"inside: conv.fp32_precision {inside!r}; raised {where}")
PYTHON
failed=0
expect() {
    got=$("$folder/venv/bin/python" "$folder/try.py" "$1")
    printf '%s\n  %s\n' "${1:-(nothing set)}" "$got"
    [[ $got == "$2"* ]] || { echo "  CHANGED: expected $2"; failed=1; }
}
"$folder/venv/bin/python" -c 'import torch; print("torch", torch.__version__)'
expect '' "inside: conv.fp32_precision 'none'; raised nothing"
expect 'torch.backends.fp32_precision = "tf32"' "inside: conv.fp32_precision 'tf32'; raised after the block: RuntimeError"
expect 'torch.backends.cudnn.fp32_precision = "ieee"' \
    "inside: conv.fp32_precision None; raised before the block: RuntimeError"
exit "$failed"
