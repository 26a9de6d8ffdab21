"""torch's ways to choose a precision: the engine keeps cuDNN exact under each, and leaves it as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: no call takes a precision back.
CODE = """
import torch
from ddpo3d_fast.engines.torch import reproducible
{setting}
cudnn = torch.backends.cudnn
state = lambda: (cudnn.enabled, cudnn.deterministic, cudnn.conv.fp32_precision)
before = state()
for gradient in (False, True):
    with reproducible(gradient):
        assert cudnn.enabled and cudnn.deterministic, state()
        assert cudnn.conv.fp32_precision in {exact}, state()
    assert state() == before, (state(), before)
"""


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.set_float32_matmul_precision('high')",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cudnn.fp32_precision = 'ieee'",
        "torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    ],
)
def test_cudnn_is_exact_whatever_precision_was_chosen(setting: str) -> None:
    code = CODE.format(setting=setting, exact="('ieee', 'none')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
