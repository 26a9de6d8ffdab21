#!/usr/bin/env bash
# diffusers 0.42.1 with transformers 5.24.0 and peft 0.21.2: a DoRA of a text encoder, saved by diffusers and loaded by
# diffusers, comes back without its magnitudes. No error is raised; lora_A and lora_B are there, so the result looks
# like an adapter, but every magnitude is the untrained one that a new DoRA begins with.
#
# The file has `...lora_magnitude_vector`, peft's name on disk. The text encoder's loader hands the tensors to
# transformers, which wants the name of the parameter, `...lora_magnitude_vector.<adapter>.weight`, and counts the
# others as unexpected in a report. It surprises because file and both calls are diffusers' own, and because a UNet's
# DoRA, in the same file and format, is loaded whole (peft's loader knows the name). peft's set_peft_model_state_dict
# reads the same tensors right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 peft==0.21.2 \
    safetensors==0.8.0
cat > "$folder/try.py" <<'PYTHON'
import copy, sys
import diffusers, peft, torch, transformers
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from safetensors.torch import load_file

print("diffusers", diffusers.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
base = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, bos_token_id=0, eos_token_id=2, pad_token_id=1))
config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"], use_dora=True)
trained = peft.inject_adapter_in_model(config, copy.deepcopy(base))
for name, parameter in trained.named_parameters():
    if "lora_B" in name:
        parameter.data = 0.2 * torch.randn_like(parameter)
    elif "lora_magnitude_vector" in name:
        parameter.data *= 3
layers = peft.get_peft_model_state_dict(trained)
Loader.save_lora_weights(sys.argv[1], text_encoder_lora_layers=layers, text_encoder_lora_adapter_metadata=config.to_dict())

transformers.logging.set_verbosity_error()
again = copy.deepcopy(base)
state, alphas, metadata = Loader.lora_state_dict(sys.argv[1], return_lora_metadata=True)
Loader.load_lora_into_text_encoder(state, alphas, again, adapter_name="x", metadata=metadata)
right = peft.inject_adapter_in_model(config, copy.deepcopy(base))
peft.set_peft_model_state_dict(right, layers)

def kept(model, kind):
    """Whether all tensors of a kind are the trained ones."""
    pick = lambda network: [p for name, p in network.named_parameters() if kind in name]
    return all(torch.allclose(*pair) for pair in zip(pick(model), pick(trained), strict=True))

kinds = ("lora_A", "lora_B", "lora_magnitude_vector")
print("in the file:", sorted({kind for key in load_file(f"{sys.argv[1]}/pytorch_lora_weights.safetensors") for kind in kinds if kind in key}))
found = {"diffusers": [kept(again, kind) for kind in kinds], "peft": [kept(right, kind) for kind in kinds]}
print("as trained (lora_A, lora_B, magnitudes):", found)
ids = torch.arange(8)[None]
with torch.no_grad():
    outputs = [model.eval()(ids).last_hidden_state for model in (trained, again)]
print("relative error of the output:", round(float((outputs[1] - outputs[0]).norm() / outputs[0].norm()), 2))
sys.exit(found != {"diffusers": [True, True, False], "peft": [True, True, True]})
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder/adapter"
