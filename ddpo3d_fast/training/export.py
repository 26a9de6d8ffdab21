"""Exports a trained prior as the folder that ships: diffusers' layout, and the UNet's ONNX graph beside it.
Or the graphs of a trained scorer, beside its weights.

    python -m ddpo3d_fast.training.export --prior runs/prior --output ddpo3d_fast/models/embedded
    python -m ddpo3d_fast.training.export --scorer ddpo3d_fast/models/embedded/scorer

The graphs carry no weights: their initialisers point into the safetensors file (raw little-endian tensors at
known offsets, which is what ONNX calls external data), so weights are stored once, in fp16, and cast when a
session loads.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpo3d_fast.engines.export import OPSET
from ddpo3d_fast.engines.export import export as export_network
from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.files import atomic_path, write_text
from ddpo3d_fast.priors.embedded import WEIGHTS
from ddpo3d_fast.rewards.embedded import GRAPHS, EmbeddedReward
from ddpo3d_fast.training.prior import PATCH, Model, make_scheduler


def point_into_safetensors(model: onnx.ModelProto, weights: Path, prefix: str = "") -> None:
    """Replaces, in place, every initialiser that is a tensor of `weights` by a reference and a cast to fp32.

    `weights` is a fp16 safetensors file beside the graph; `prefix` is what the graph's names have before the
    file's. Raises ValueError if an initialiser of more than 1 kB is not in the file, or one is of another
    type or shape there.
    """
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    graph, kept, casts = model.graph, [], []
    for tensor in graph.initializer:
        name = tensor.name.removeprefix(prefix)
        if name not in header:
            if len(tensor.raw_data) > 1024:
                raise ValueError(f"{weights}: has no tensor {name!r}, which the graph needs")
            kept.append(tensor)
            continue
        entry = header[name]
        if entry["dtype"] != "F16" or list(entry["shape"]) != list(tensor.dims):
            raise ValueError(
                f"{weights}: {name} is {entry['dtype']} {entry['shape']}, expected F16 {list(tensor.dims)}"
            )
        begin, end = entry["data_offsets"]
        stored = TensorProto(name=f"{tensor.name}.fp16", data_type=TensorProto.FLOAT16, dims=tensor.dims)
        stored.data_location = TensorProto.EXTERNAL
        for key, value in {
            "location": weights.name,
            "offset": 8 + length + begin,
            "length": end - begin,
        }.items():
            stored.external_data.add(key=key, value=str(value))
        kept.append(stored)
        casts.append(helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
    nodes = casts + list(graph.node)
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *model.functions):
        del holder.metadata_props[:]  # the exporter's stack traces: nine tenths of the file


def export_graph(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> onnx.ModelProto:
    """The module's graph, batch symbolic, weights unfolded so that initialisers equal the parameters."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None  # None is for dynamo=False
    return program.model_proto


def _half(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}


def export(model: Model, output: Path) -> None:
    """Writes model_index.json, unet/, text_encoder/, codec/ and scheduler/ under `output`."""
    attention = library("diffusers.models.attention_processor", "exporting the prior")

    for part in ("unet", "text_encoder", "codec"):
        (output / part).mkdir(parents=True, exist_ok=True)
    denoiser = model.denoiser.eval()
    unet = denoiser.unet
    unet.set_attn_processor(attention.AttnProcessor2_0())
    for name, module in (("unet", unet), ("text_encoder", model.text_encoder)):
        with atomic_path(output / name / WEIGHTS) as path:
            save_file(_half(module), path)
    unet.save_config(output / "unet")
    make_scheduler().save_config(output / "scheduler")
    vocabulary = model.text_encoder.vocabulary
    configs = {
        "text_encoder": {
            "_class_name": "CaptionEncoder",
            "objects": vocabulary.objects,
            "colors": vocabulary.colors,
            "views": vocabulary.views,
        },
        "codec": {"_class_name": "PatchCodec", "patch": PATCH},
    }
    for part, config in configs.items():
        write_text(output / part / "config.json", json.dumps(config, indent=2) + "\n")
    index = {
        "_class_name": "EmbeddedPrior",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["ddpo3d_fast.priors.caption", "CaptionEncoder"],
        "codec": ["ddpo3d_fast.priors.codec", "PatchCodec"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    write_text(output / "model_index.json", json.dumps(index, indent=2) + "\n")

    channels, size = unet.config["out_channels"], unet.config["sample_size"]
    encoder = model.text_encoder
    conditions = {"tokens": (6, encoder.token_dim), "pooled": (encoder.pooled_dim,)}
    conditions["layout"] = (encoder.layout_channels, size, size)
    inputs = {"noisy": torch.randn(2, channels, size, size), "timesteps": torch.tensor([3, 700])}
    inputs |= {name: torch.randn(2, *shape) for name, shape in conditions.items()}
    graph = export_graph(denoiser, inputs, ["prediction"])
    point_into_safetensors(graph, output / "unet" / WEIGHTS, prefix="unet.")
    with atomic_path(output / "unet" / "model.onnx") as path:
        path.write_bytes(graph.SerializeToString())
    # What the fp16 weights say for known inputs: an engine is accepted only if it agrees.
    unet.load_state_dict({k: v.float() for k, v in _half(unet).items()})
    with torch.no_grad():
        reference = denoiser(*inputs.values())
    probe = {name: value.numpy() for name, value in inputs.items()} | {
        "expected.prediction": reference.numpy()
    }
    with atomic_path(output / "unet" / "probe.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **probe)


def export_scorer(folder: Path) -> None:
    """Writes the graphs of the scorer whose config.json and model.safetensors are in `folder`."""
    scorer = EmbeddedReward(folder=folder)
    weights = scorer.network.state_dict()
    for gradient, name in enumerate(GRAPHS):
        network = replace(scorer.network_for_engines(bool(gradient)), graph=None)
        with tempfile.TemporaryDirectory() as place:
            export_network(network, Path(place) / name, torch.float32)
            graph = onnx.load(Path(place) / name)
        _name_by_value(graph.graph, weights)
        point_into_safetensors(graph, folder / "model.safetensors")
        with atomic_path(folder / name) as path:
            path.write_bytes(graph.SerializeToString())


def _name_by_value(graph: onnx.GraphProto, weights: dict[str, Tensor]) -> None:
    """Gives initialisers the names of the weights that they equal, which the trace of a gradient loses."""
    names = {}
    for tensor in graph.initializer:
        value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        names[tensor.name] = next(
            (name for name, weight in weights.items() if torch.equal(weight, value)), tensor.name
        )
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the trained prior, or the graphs of a scorer.")
    parser.add_argument("--scorer", type=Path, help="the folder of one: its graphs alone")
    parser.add_argument("--prior", type=Path, default=Path("runs/prior"))
    parser.add_argument("--output", type=Path, default=Path("ddpo3d_fast/models/embedded"))
    arguments = parser.parse_args()
    if arguments.scorer:
        export_scorer(arguments.scorer)
        return
    state = torch.load(arguments.prior / "checkpoint.pt", map_location="cpu")
    model = Model()
    for parameter, average in zip(model.parameters(), state["average"], strict=True):
        parameter.data.copy_(average)
    export(model, arguments.output)
    print(f"{arguments.output}: the average after {state['samples']} samples")


if __name__ == "__main__":
    main()
