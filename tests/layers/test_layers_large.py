"""Large spaces: small plans, bounded memory, checkpointing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nfn_opt.layers import NFLinear, RelationLinear, Sharing, movement
from nfn_opt.layers.plan import plan_per_parameter
from nfn_opt.layers.relations import plan_by_relation
from nfn_opt.testing import assert_equivariant, random_features
from nfn_opt.weight_space import WeightSpace
from tests.layers.large import gpt2, resnet
from tests.layers.spaces import Residual, cnn, hand_made, mlp, space_of

SHARINGS: tuple[Sharing, ...] = ("per_parameter", "by_relation")
LARGE: dict[str, tuple[Callable[[], WeightSpace], int, int]] = {
    "GPT-2 small": (gpt2, 148, 124_439_808),
    "ResNet-18": (lambda: resnet((2, 2, 2, 2), bottleneck=False), 62, 11_689_512),
    "ResNet-152": (lambda: resnet((3, 8, 36, 3), bottleneck=True), 467, 60_192_808),
}
SMALL = {
    "MLP": space_of(mlp(3, 6, 5, 2), 3),
    "CNN": space_of(cnn(1, 4, 4, 3), 1, 5, 5),
    "residual": space_of(Residual(2, 5, 2), 2),
    "concatenated": hand_made([("c", "a+b"), ("a",), ("b", "c")], a=3, b=2, c=4),
}


@pytest.mark.parametrize("name", LARGE)
def test_spaces_are_those_of_the_models(name: str) -> None:
    make, tensors, weights = LARGE[name]
    space = make()
    assert (len(space.names), space.numel) == (tensors, weights)


@pytest.mark.parametrize("name", LARGE)
def test_plans_grow_with_the_number_of_tensors_not_of_pairs(name: str) -> None:
    space = LARGE[name][0]().cells.space
    tensors = len(space.names)
    steps = plan_per_parameter(space)
    assert sum(len(step.readings) + len(step.writings) for step in steps) < 16 * tensors
    writings = plan_by_relation(space)
    assert len(writings) < 6 * tensors
    sources = [source for writing in writings for _, source in writing.sources]
    assert len(sources) < 100 * tensors
    assert len({id(source.members) for source in sources if source.count > 1}) < 6 * tensors
    assert plan_per_parameter(space) is steps
    assert plan_by_relation(space) is writings


MEASURE = """
import json, sys, torch
from nfn_opt.layers import NFLinear
sys.path.insert(0, sys.argv[3])
from large import resnet
def peak():
    with open("/proc/self/status") as status:  # the peak that getrusage tells starts from that of the parent
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
sharing, symmetry = sys.argv[1:3]
space = resnet((2, 2, 2, 2), bottleneck=False, symmetry=symmetry)
layer = NFLinear(space, 8, 8, sharing=sharing, generator=torch.Generator().manual_seed(0))
features = {s.name: torch.ones(1, *s.view_shape, 8) for s in space.parameters}
before = peak()
with torch.no_grad():
    out = layer(features)
print(json.dumps({"extra": peak() - before, "out": sum(t.numel() * 4 for t in out.values())}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sharing", "symmetry"), [("per_parameter", "all"), ("by_relation", "hidden")])
def test_resnet_18_with_8_channels_takes_less_than_2_gb(sharing: str, symmetry: str) -> None:
    """Extra memory of a forward pass, the result of 374 MB included."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", MEASURE, sharing, symmetry, str(here)]
    run = subprocess.run(command, cwd=here.parents[1], capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)
    assert result["out"] == 11_689_512 * 8 * 4
    assert result["out"] * 0.9 < result["extra"] < 2e9


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", SMALL)
def test_chunks_change_nothing(
    name: str, sharing: Sharing, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SMALL[name]
    layer = NFLinear(space, 2, 3, sharing=sharing, generator=generator).double()
    features = random_features(space, 2, generator=generator)
    whole = layer(features)
    monkeypatch.setattr(movement, "CHUNK", 8)
    assert len(list(movement._chunks(torch.Size((2, 5, 4, 3)), 3))) == 10
    for n, tensor in layer(features).items():
        torch.testing.assert_close(tensor, whole[n])


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_gives_the_same_gradients(
    name: str, sharing: Sharing, generator: torch.Generator
) -> None:
    space = SMALL[name]
    plain, checkpointed = (
        NFLinear(
            space, 2, 3, sharing=sharing, generator=torch.Generator().manual_seed(0), checkpoint=flag
        ).double()
        for flag in (False, True)
    )
    features = random_features(space, 2, generator=generator)
    saved: dict[bool, int] = {}

    def gradients(layer: torch.nn.Module, flag: bool) -> list[Tensor]:
        inputs = {n: t.clone().requires_grad_() for n, t in features.items()}
        given = {t.data_ptr() for t in (*inputs.values(), *layer.parameters())}

        def pack(tensor: Tensor) -> Tensor:
            saved[flag] = saved.get(flag, 0) + (tensor.numel() if tensor.data_ptr() not in given else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = torch.stack([t.sin().sum() for t in map(torch.clone, layer(inputs).values())]).sum()
        loss.backward()
        return [t.grad for t in (*inputs.values(), *layer.parameters()) if t.grad is not None]

    expected, got = gradients(plain, False), gradients(checkpointed, True)
    assert len(expected) == len(got) >= len(space.names) + 1
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b)
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    assert saved[True] < saved[False]


def test_many_tensors_in_one_relation(generator: torch.Generator) -> None:
    """Sums that are formed once give the means of the others."""
    space = space_of(mlp(2, *[3] * 6, 2), 2, symmetry="all")
    layer = RelationLinear(space, 2, 3, generator=generator).double()
    assert_equivariant(layer, space, 2, generator)
    features = random_features(space, 2, generator=generator)
    out = layer(features)
    changed = {**features, "0.bias": features["0.bias"] + 1}
    assert all((layer(changed)[n] - out[n]).abs().min() > 1e-6 for n in ("8.bias", "8.weight"))
