"""The neural functional rule: what it sees, and the weight space that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.artifacts import ArtifactError
from nfn_opt.optim import AdamConfig, AdamRule, LearnedOptimizer, UpdateRule, load_rule, make_rule, save_rule
from nfn_opt.weight_space import WeightSpace
from tests.optim.networks import difference, draw_like, random_space
from tests.optim.rule_cases import run


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


SPACE = WeightSpace.from_module(make_model(), torch.zeros(1, 3))
LOOSE = WeightSpace.independent({spec.name: torch.zeros(spec.shape) for spec in SPACE.parameters})


def frozen(rule: UpdateRule) -> UpdateRule:
    return rule.double().requires_grad_(False)


@pytest.mark.parametrize("sharing", ["by_relation", "per_parameter"])
def test_tied_axes_are_seen_and_untied_permutations_matter(sharing: str, generator: torch.Generator) -> None:
    rule = frozen(make_rule("nfn", sharing=sharing, space=SPACE))
    rule.get_parameter("beta").fill_(1.0)
    assert difference(rule, SPACE, SPACE, generator) < 1e-10
    assert difference(rule, SPACE, LOOSE, generator) > 1e-4
    assert difference(frozen(make_rule("mlp")), SPACE, LOOSE, generator) < 1e-10


@pytest.mark.parametrize("seed", range(8))
def test_per_parameter_rules_are_equivariant(seed: int, generator: torch.Generator) -> None:
    space = random_space(seed)
    rule = frozen(make_rule("nfn", sharing="per_parameter", space=space, hidden=(4,), channels=4))
    assert difference(rule, space, space, generator) < 1e-10


def test_tensors_see_one_another(generator: torch.Generator) -> None:
    """A gradient of one tensor alone moves its neighbours differently."""
    rule = frozen(make_rule("nfn"))
    params, grads = draw_like(SPACE, generator), draw_like(SPACE, generator)
    other = {**grads, "2.weight": grads["2.weight"].flip(0)}
    after, changed = (run(rule, SPACE, params, [g])[0] for g in (grads, other))
    assert not torch.equal(after["0.weight"], changed["0.weight"])


@pytest.mark.parametrize("kind", ["mlp", "nfn"])
def test_starts_close_to_adam(kind: str, generator: torch.Generator) -> None:
    rule = frozen(make_rule(kind, lr=3e-3, second_moment_decay=0.999))
    adam = frozen(AdamRule(AdamConfig(lr=3e-3)))
    params, gradients = draw_like(SPACE, generator), [draw_like(SPACE, generator) for _ in range(5)]
    mine, theirs = (run(r, SPACE, params, gradients)[0] for r in (rule, adam))
    moved = torch.cat([(theirs[n] - params[n]).flatten() for n in params])
    apart = torch.cat([(theirs[n] - mine[n]).flatten() for n in params])
    assert 0 < apart.norm() < 0.05 * moved.norm()


def test_one_rule_serves_other_architectures(generator: torch.Generator) -> None:
    rule = frozen(make_rule("nfn"))
    for seed in range(4):
        space = random_space(seed)
        params = draw_like(space, generator)
        after, _ = run(rule, space, params, [draw_like(space, generator)])
        assert {n: p.shape for n, p in after.items()} == {n: p.shape for n, p in params.items()}


def test_per_parameter_rules_belong_to_their_space(tmp_path: Path, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="was given; pass space="):
        make_rule("nfn", sharing="per_parameter")
    rule = make_rule("nfn", sharing="per_parameter", space=SPACE)
    path = save_rule(rule, tmp_path / "rule.safetensors")
    params, grads = draw_like(SPACE, generator), draw_like(SPACE, generator)
    loaded = load_rule(path, space=SPACE)
    expected, got = (run(frozen(r), SPACE, params, [grads])[0] for r in (rule, loaded))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for space, match in ((None, "pass that space="), (LOOSE, f"got {LOOSE.fingerprint}")):
        with pytest.raises(ArtifactError, match=match):
            load_rule(path, space=space)
    with pytest.raises(ValueError, match="belong to the weight space"):
        run(rule, LOOSE, params, [grads])


@pytest.mark.parametrize("with_space", [True, False])
@pytest.mark.parametrize("sharing", ["by_relation", "per_parameter"])
def test_trains_by_the_shell(with_space: bool, sharing: str, generator: torch.Generator) -> None:
    model = make_model()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    # Without a space, the shell makes one in which nothing is tied, under names of its own.
    own = WeightSpace.independent({f"0.{i}": p for i, p in enumerate(model.parameters())})
    rule = make_rule("nfn", sharing=sharing, space=SPACE if with_space else own)
    optimizer = LearnedOptimizer(model.named_parameters(), rule, space=SPACE if with_space else None)
    x = torch.randn(16, 3, generator=generator)
    losses: list[Tensor] = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append((model(x) - 1).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_the_whole_space_is_needed() -> None:
    some = list(make_model().named_parameters())[:4]
    with pytest.raises(ValueError, match=r"not given: 4.bias, 4.weight; pass all of model.named_parameters"):
        LearnedOptimizer(some, make_rule("nfn"), space=SPACE)
    LearnedOptimizer(some, make_rule("mlp"), space=SPACE)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"sharing": "by_name"}, "sharing is 'by_name'"),
        ({"hidden": ()}, "hidden is"),
    ],
)
def test_refused_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_rule("nfn", **options)
