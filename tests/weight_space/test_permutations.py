from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nfn_opt.weight_space import Axis, Permutation, TensorSpec, WeightSpace
from tests.weight_space.models import draw, randomised


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3, groups=2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 5),
        nn.LayerNorm(5),
        nn.Linear(5, 3),
    )


def space_of(model: nn.Module) -> WeightSpace:
    return WeightSpace.from_module(model, draw(2, 2, 6))


@pytest.fixture
def model() -> nn.Module:
    return randomised(network()).eval()


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(left), dict(right), rtol=0, atol=0)


def test_a_permuted_state_dict_loads_into_a_network_of_the_same_function(
    model: nn.Module, generator: torch.Generator
) -> None:
    space, other = space_of(model), network().eval()
    state = space.permute(model.state_dict(), space.random_permutation(generator))
    assert list(state) == list(model.state_dict())
    other.load_state_dict(state)
    x = draw(4, 2, 6)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(state[name], tensor)]
    assert set(changed) == set(state) - {"1.num_batches_tracked", "6.bias"}


def test_the_inverse_undoes(model: nn.Module, generator: torch.Generator) -> None:
    space = space_of(model)
    perm = space.random_permutation(generator)
    state = model.state_dict()
    close(space.permute(space.permute(state, perm), perm, inverse=True), state)
    close(space.permute(space.permute(state, perm), perm.inverse()), state)
    close(space.permute(state, perm.inverse(), inverse=True), space.permute(state, perm))


def test_permutations_compose(model: nn.Module, generator: torch.Generator) -> None:
    space = space_of(model)
    first, second = space.random_permutation(generator), space.random_permutation(generator)
    state = model.state_dict()
    close(space.permute(space.permute(state, first), second), space.permute(state, first.then(second)))


def test_features_are_permuted_like_networks(model: nn.Module, generator: torch.Generator) -> None:
    space = space_of(model)
    perm = space.random_permutation(generator)
    parameters = [
        {n: p.detach() for n, p in randomised(network(), seed).named_parameters()} for seed in (1, 2)
    ]
    permuted = space.permute_features(space.features(parameters), perm)
    close(permuted, space.features([space.permute(single, perm) for single in parameters]))
    close(space.permute_features(permuted, perm, inverse=True), space.features(parameters))


def test_permuting_by_hand() -> None:
    space = WeightSpace.from_module(nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1)), draw(1, 1))
    state = {"0.weight": draw(3, 1), "0.bias": draw(3), "1.weight": draw(1, 3), "1.bias": draw(1)}
    moved = space.permute(state, Permutation({"h1": torch.tensor([2, 0, 1])}))
    order = [2, 0, 1]
    expected = {"0.weight": state["0.weight"][order], "0.bias": state["0.bias"][order]}
    close(moved, {**state, **expected, "1.weight": state["1.weight"][:, order]})


def test_groups_left_out_stay(model: nn.Module) -> None:
    space = space_of(model)
    name, size = list(space.groups.items())[-1]
    moved = space.permute(model.state_dict(), Permutation({name: torch.arange(size).flip(0)}))
    assert not torch.equal(moved["4.bias"], model.state_dict()["4.bias"])
    assert torch.equal(moved["0.weight"], model.state_dict()["0.weight"])
    close(space.permute(model.state_dict(), Permutation({})), model.state_dict())


def test_random_permutations_are_drawn_from_the_generator(model: nn.Module) -> None:
    space = space_of(model)
    first, same, other = (space.random_permutation(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert {name: len(index) for name, index in first.indices.items()} == space.groups
    close(dict(first.indices), dict(same.indices))
    assert any(not torch.equal(first.indices[name], other.indices[name]) for name in space.groups)


def test_tied_tensors_move_together(generator: torch.Generator) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu() + self.second(x).sin())

    model, other = Tied(), Tied()
    space = WeightSpace.from_module(model, draw(2, 3))
    state = space.permute(model.state_dict(), space.random_permutation(generator))
    assert torch.equal(state["first.weight"], state["second.weight"])
    other.load_state_dict(state)
    torch.testing.assert_close(other(draw(2, 3)), model(draw(2, 3)))
    assert space.names == ("first.weight", "first.bias", "second.bias", "last.weight", "last.bias")


def test_independent_spaces_permute_every_axis(generator: torch.Generator) -> None:
    tensors = {"w": draw(4, 3), "b": draw(4), "scalar": draw(), "thin": draw(1, 3)}
    space = WeightSpace.independent(tensors)
    assert space.groups == {"w.0": 4, "w.1": 3, "b.0": 4, "thin.1": 3}
    perm = space.random_permutation(generator)
    p = perm.indices
    expected = {"w": tensors["w"][p["w.0"]][:, p["w.1"]], "b": tensors["b"][p["b.0"]]}
    close(space.permute(tensors, perm), {**tensors, **expected, "thin": tensors["thin"][:, p["thin.1"]]})


def test_spaces_compare_by_what_may_be_permuted() -> None:
    def space(hidden: int, outputs: int) -> WeightSpace:
        model = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        return WeightSpace.from_module(model, draw(2, 3))

    assert space(4, 2) == space(4, 2)
    assert space(4, 2).fingerprint == space(4, 2).fingerprint
    assert space(4, 2) != space(5, 2)
    assert space(4, 2).fingerprint != space(5, 2).fingerprint


def test_fingerprints_do_not_depend_on_notes() -> None:
    axis, same = Axis("f1", 3, permutable=False, note="input"), Axis("f1", 3, permutable=False, note="output")
    one, two = (WeightSpace((TensorSpec("w", (3,), (a,)),)) for a in (axis, same))
    assert one == two
    assert one.fingerprint == two.fingerprint


def test_views_and_back() -> None:
    spec = TensorSpec("w", (4, 6), (Axis("h", 4), Axis("c", 2), Axis("p", 3, permutable=False)))
    for batch in ((), (5,), (5, 7)):
        for rest in ((), (2,)):
            tensor = draw(*batch, 4, 6, *rest)
            viewed = spec.view(tensor, batch_dims=len(batch))
            assert viewed.shape == (*batch, 4, 2, 3, *rest)
            assert torch.equal(spec.unview(viewed, batch_dims=len(batch)), tensor)
    assert (spec.numel, spec.view_shape, str(spec)) == (24, (4, 2, 3), "w (h:4, c:2, 3)")
