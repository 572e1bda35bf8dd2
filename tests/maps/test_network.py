"""Network: halves with index legs open or cut, and how nodes start."""

import pytest
import torch

from tests.support.tolerance import close
from tntune.maps.network import Network, Node, identity, normal, orthonormal, uniform

DRAW = normal(1.0)
NETWORK = Network(
    {"layer": 3, "proj": 2, "in": 5, "out a": 2, "out b": 4, "width": 3, "bond": 2},
    down={"u": Node(("layer", "in", "width"), DRAW)},
    up={"c": Node(("proj", "width", "bond"), DRAW), "v": Node(("out b", "out a", "bond"), DRAW)},
    in_legs=("in",),
    out_legs=("out a", "out b"),
    silent="c",
)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: DRAW(shape, generator, torch.float64) for name, shape in NETWORK.shapes.items()}


def test_halves_keep_only_the_index_legs_they_have() -> None:
    own = tensors()
    down, up = (half(own, {}) for half in NETWORK.halves(("layer", "proj")))
    assert close(down, torch.einsum("liw->lwi", own["u"])[:, None])
    assert close(up, torch.einsum("pwb,xyb->pyxw", own["c"], own["v"]).reshape(1, 2, 8, 3))


@pytest.mark.parametrize(("layer", "proj"), [(0, 0), (2, 1)])
def test_an_address_cuts_index_legs_before_the_contraction(layer: int, proj: int) -> None:
    own = tensors()
    whole = [half(own, {}).expand(3, 2, -1, -1)[layer, proj] for half in NETWORK.halves(("layer", "proj"))]
    halves = NETWORK.halves(())
    parts = [half(own, {"layer": layer, "proj": proj})[0, 0] for half in halves]
    assert all(close(a, b) for a, b in zip(parts, whole, strict=True))
    assert [half.run.shapes for half in halves] == [((5, 3),), ((3, 2), (4, 2, 2))]


def test_sizes() -> None:
    assert NETWORK.stack_shape == (3, 2)
    assert NETWORK.span(("out a", "out b")) == 8
    assert list(NETWORK.nodes) == ["u", "c", "v"]


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (2, 5, 5)])
def test_orthonormal(shape: tuple[int, ...]) -> None:
    q = orthonormal(shape, torch.Generator().manual_seed(0), torch.float64)
    assert q.shape == shape
    gram = q.mT @ q if shape[-2] >= shape[-1] else q @ q.mT
    assert close(gram, torch.eye(min(shape[-2:]), dtype=torch.float64).expand(gram.shape))


def test_fills_have_the_stated_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    assert abs(float(normal(0.3)((40_000,), generator, torch.float64).std()) / 0.3 - 1) < 0.02
    drawn = uniform(0.3)((40_000,), generator, torch.float64)
    assert abs(float(drawn.square().mean()) / (0.3**2 / 3) - 1) < 0.02
    assert float(drawn.abs().max()) <= 0.3


def test_identity_slices() -> None:
    core = identity((3, 2, 3), None, torch.float64)
    assert all(torch.equal(core[:, k], torch.eye(3).double()) for k in range(2))
