#!/usr/bin/env bash
# lycoris-lora 4.1.3 and peft 0.21.2: a DoRA adapter at scale 0 is not the base model, in neither; at any scale but 1
# the two make different weights of the same numbers.
#
# DoRA (arXiv 2402.09353) is W' = m (W + D) / |W + D|, row by row. At scale 1 both agree to the last digits.
#   LyCORIS, multiplier s:   (W + D) (1 + s (m / |W + D| - 1)): at 0 the whole low-rank part stays, without lengths;
#   peft, scale s:           m (W + s D) / |W + s D|:           at 0 the low-rank part is gone, the lengths stay.
# It surprises because a scale of 0 is everybody's way to compare with and without, exact for a plain LoRA in both (as
# the last lines show), and because "0.5" of one published file is another picture in each program.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2 lycoris-lora==4.1.3
cat > "$folder/try.py" <<'PYTHON'
import sys
from importlib.metadata import version

import peft, torch
from lycoris.modules.locon import LoConModule

print("lycoris-lora", version("lycoris-lora"), "peft", peft.__version__, "torch", torch.__version__)
torch.manual_seed(0)
base, down, up = torch.randn(4, 6), torch.randn(2, 6), torch.randn(4, 2)
lengths = base.norm(dim=1) * torch.tensor([0.5, 1.0, 1.5, 2.0])

def linear():
    layer = torch.nn.Linear(6, 4, bias=False)
    layer.weight.data = base.clone()
    return layer

def by_lycoris(scale, dora):
    module = LoConModule("layer", linear(), lora_dim=2, alpha=2, weight_decompose=dora)
    module.lora_down.weight.data, module.lora_up.weight.data = down, up
    if dora:
        module.dora_scale.data = lengths[:, None]
    return module.get_merged_weight(scale)[0].detach()

def by_peft(scale, dora):
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], use_dora=dora)
    model = peft.get_peft_model(torch.nn.Sequential(linear()), config)
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = down, up
    if dora:
        layer.lora_magnitude_vector["default"].weight.data = lengths
    layer.scale_layer(scale)
    return model.merge_and_unload()[0].weight.detach()

far, found = lambda a, b: round(float((a - b).norm() / b.norm()), 3), {}
for dora in (True, False):
    for scale in (1.0, 0.5, 0.0):
        one, other = by_lycoris(scale, dora), by_peft(scale, dora)
        found[dora, scale] = far(one, other), far(one, base), far(other, base)
        print("DoRA" if dora else "LoRA", scale, "LyCORIS-peft, LyCORIS-base, peft-base:", *found[dora, scale])
as_seen = found[True, 1.0][0] == 0 and min(found[True, 0.5]) > 0.1 and min(found[True, 0.0]) > 0.1
sys.exit(not (as_seen and found[False, 0.0] == (0, 0, 0) and found[False, 0.5][0] == 0))
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
