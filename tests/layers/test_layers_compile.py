"""Compilation of the linear layer by an argument, and the way back where there is no compiler."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch._inductor import config

from nfn_opt.layers import NFAttention, NFLinear, RelationLinear, Sharing
from nfn_opt.testing import random_features
from tests.layers.spaces import mlp, space_of

SHARINGS: tuple[Sharing, ...] = ("per_parameter", "by_relation")
SPACE = space_of(mlp(2, 3, 2), 2)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # inside torch's own compiler
        yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("sharing", SHARINGS)
def test_compiled_layers_give_the_same(sharing: Sharing, generator: torch.Generator) -> None:
    plain = NFLinear(SPACE, 2, 3, sharing=sharing, generator=generator)
    compiled = NFLinear(SPACE, 2, 3, sharing=sharing, compile=True)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    features = random_features(SPACE, 2, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        expected, got = plain(features), compiled(features)
    assert compiled.compiled, "it fell back"
    for name in SPACE.names:
        torch.testing.assert_close(got[name], expected[name])
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    clone = copy.deepcopy(compiled)
    assert all(torch.equal(a, b) for a, b in zip(clone.parameters(), compiled.parameters(), strict=True))


@pytest.mark.slow
def test_many_layers_compile_each_on_its_own(generator: torch.Generator) -> None:
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True), torch.no_grad():
        for width in (2, 3, 4):
            space = space_of(mlp(2, width, 2), 2)
            layer = NFLinear(space, 1, 1, compile=True, generator=generator)
            layer(random_features(space, 1, generator=generator, dtype=torch.float32))
            assert layer.compiled


@pytest.mark.slow
def test_compiled_attention_gives_the_same(generator: torch.Generator) -> None:
    plain = NFAttention(SPACE, 4, 2, generator=generator)
    compiled = NFAttention(SPACE, 4, 2, compile=True)
    compiled.load_state_dict(plain.state_dict())
    features = random_features(SPACE, 4, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        expected, got = plain(features), compiled(features)
    assert compiled.compiled, "it fell back"
    for name in SPACE.names:
        torch.testing.assert_close(got[name], expected[name])


@pytest.mark.parametrize("sharing", SHARINGS)
def test_without_a_compiler_it_warns_once_and_runs(sharing: Sharing, generator: torch.Generator) -> None:
    plain = NFLinear(SPACE, 2, 3, sharing=sharing, generator=generator)
    compiled = NFLinear(SPACE, 2, 3, sharing=sharing, compile=True)
    compiled.load_state_dict(plain.state_dict())
    features = random_features(SPACE, 2, generator=generator, dtype=torch.float32)
    without = config.patch({"cpp.cxx": ("/nonexistent/compiler",), "fx_graph_cache": False})
    with torch.no_grad(), without:
        with pytest.warns(
            UserWarning, match="could not be compiled and runs as it is .*; install a C\\+\\+ compiler"
        ):
            got = compiled(features)
        again = compiled(features)  # a second warning would be an error
        expected = plain(features)
    for name in SPACE.names:
        assert torch.equal(got[name], expected[name])
        assert torch.equal(again[name], expected[name])


def test_other_errors_are_not_taken_for_a_missing_compiler() -> None:
    layer = NFLinear(SPACE, 2, 3, compile=True)
    with pytest.raises(ValueError, match=r"0\.weight"):
        layer({})


def test_function_transforms_see_through(generator: torch.Generator) -> None:
    """A compiled layer under a transform runs as it is."""
    layer = RelationLinear(SPACE, 2, 3, generator=generator, compile=True).double()
    features = random_features(SPACE, 2, generator=generator)
    state = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        out = torch.func.functional_call(layer, parameters, (features,))
        return torch.stack([t.square().sum() for t in out.values()]).sum()

    got = torch.func.grad(loss)(state)
    assert all(bool(tensor.isfinite().all()) for tensor in got.values())
