#!/usr/bin/env bash
# gsplat 1.5.3: DefaultStrategy never resets opacities, whatever `reset_every` says.
#
# The reset is half of what keeps adaptive density control from filling the space before the cameras with floaters: every
# 3,000 steps all opacities go down to twice the pruning threshold, and what no view wants back is pruned. The strategy
# has the setting, its documentation and the function, which works when it is called by itself. In the step, though, its
# condition joins `step % reset_every == 0` and `step > 0` by the bitwise `&`, which Python binds tighter than either
# comparison: it reads (step % reset_every == (0 & step)) and ((0 & step) > 0), which no step fulfils. It surprises because
# runs go well without: scenes come out a little heavier, and results "of gsplat's default strategy" are results without
# resets. Here the strategy passes its 3,000th step with opacities of 0.9, which stay; the function alone makes them 0.01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 gsplat==1.5.3
cat > "$folder/try.py" <<'PYTHON'
from importlib.metadata import version

import torch
from gsplat.strategy import DefaultStrategy
from gsplat.strategy.ops import reset_opa

print("gsplat", version("gsplat"), "torch", torch.__version__)
torch.manual_seed(0)
shapes = {"means": 3, "scales": 3, "quats": 4}
params = {name: torch.nn.Parameter(torch.rand(5, size)) for name, size in shapes.items()}
params["opacities"] = torch.nn.Parameter(torch.logit(torch.full((5,), 0.9)))
optimizers = {name: torch.optim.Adam([parameter]) for name, parameter in params.items()}

strategy = DefaultStrategy(refine_start_iter=10_000, verbose=False)  # nothing but the reset is due
strategy.check_sanity(params, optimizers)
state = strategy.initialize_state(scene_scale=1.0)
means2d = torch.zeros(1, 5, 2, requires_grad=True)
means2d.grad = torch.rand(1, 5, 2)
info = {"means2d": means2d, "radii": torch.full((1, 5, 2), 3), "gaussian_ids": None}
info |= {"width": 64, "height": 64, "n_cameras": 1}

def largest():
    return round(float(params["opacities"].detach().sigmoid().max()), 3)

for step in range(strategy.reset_every - 2, strategy.reset_every + 2):
    strategy.step_post_backward(params, optimizers, state, step, info)
    print(f"step {step} of reset_every={strategy.reset_every}: largest opacity {largest()}")
by_steps = largest()
reset_opa(params, optimizers, state, value=2 * strategy.prune_opa)
print("reset_opa by itself:", largest())
assert (by_steps, largest()) == (0.9, 0.01), "the behaviour has changed"
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
