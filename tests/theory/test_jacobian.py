"""Jacobians of maps: by structure and by autodiff, for every map, with padding, scales and latents."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from tests.support.maps import MAPS, tensors_of
from tests.support.tolerance import close
from tntune.errors import UnsupportedError
from tntune.maps.base import Factors, WeightMap
from tntune.maps.latent import Latent
from tntune.maps.layout import Geometry, Joined
from tntune.maps.lora import LoRA
from tntune.maps.tensorguide import TensorGuide
from tntune.theory.jacobian import delta_jacobian, jacobian, map_jacobian
from tntune.theory.readout import readout_train
from tntune.tt.train import dense, tt_tensor

pytestmark = pytest.mark.statement("T0")


@pytest.mark.parametrize("name", MAPS)
def test_structure_and_autodiff_agree(name: str) -> None:
    params, fixed = tensors_of(MAPS[name])
    J, found = jacobian(MAPS[name], params, fixed), map_jacobian(MAPS[name], params, fixed)
    gram = J.mT @ J
    assert found.num_parameters == MAPS[name].num_parameters
    assert close(found.gram(), gram)
    C = found.factor()
    assert close(C.mT @ C, gram)
    v = torch.randn(2, len(gram), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert close(found.matvec(v), v @ gram, factor=10)
    assert found.nullity == len(gram) - int(torch.linalg.matrix_rank(J))
    assert found.effective_dimension + found.nullity == len(gram)


@pytest.mark.parametrize("name", [name for name in MAPS if "mean" not in name])
def test_scales_of_both_factors(name: str) -> None:
    params, fixed = tensors_of(MAPS[name])
    J = jacobian(MAPS[name], params, fixed)
    first = MAPS[name].factors(params, fixed).down.numel()
    J = torch.cat([3.0 * J[:first], 0.5 * J[first:]])
    found = map_jacobian(MAPS[name], params, fixed, down_scale=3.0, up_scale=0.5)
    assert close(found.gram(), J.mT @ J)


@pytest.mark.parametrize("name", ["concat", "joined unequal primes", "joined io digits", "joined layers"])
def test_without_up_only_down_counts(name: str) -> None:
    params, fixed = tensors_of(MAPS[name])
    first = MAPS[name].factors(params, fixed).down.numel()
    J = jacobian(MAPS[name], params, fixed)[:first]
    assert close(map_jacobian(MAPS[name], params, fixed, up_scale=0.0).gram(), J.mT @ J)


@pytest.mark.parametrize("pattern", ["side f1 f2 f3 w", "w f3 (f1 side) f2", "io2 w io1"])
@pytest.mark.parametrize("sizes", [(7, 5, 3), (5, 7, 2), (6, 6, 1), (1, 8, 2)])
def test_readout_is_one_where_a_factor_is_read(pattern: str, sizes: tuple[int, int, int]) -> None:
    layout = Joined.auto(pattern, Geometry(*sizes))
    d, q, width = sizes
    expected = layout.write(torch.full((1, width, d), 2.0), torch.full((1, q, width), 5.0))
    found = dense(tt_tensor(readout_train(layout, Geometry(*sizes), down_scale=2.0, up_scale=5.0)))
    assert close(found, expected.double())


def test_readout_of_2_to_the_40_entries_has_small_ranks() -> None:
    sizes = Geometry(2**33 - 12345, 2**32 + 7, 2**6)
    layout = Joined("side " + " ".join(f"f{k}" for k in range(1, 34)) + " w", (2, *(2,) * 33, 64))
    train = readout_train(layout, sizes)
    assert max(len(core) for core in train) <= 3
    read = torch.ones(1, dtype=torch.float64)
    for core in train:
        read = read @ core.sum(1)
    assert close(read, torch.tensor([64.0 * (sizes.in_features + sizes.out_features)], dtype=torch.float64))


def test_lora_moves_every_entry_alone() -> None:
    params, fixed = tensors_of(LoRA(5, 3, 2))
    assert torch.equal(jacobian(LoRA(5, 3, 2), params, fixed), torch.eye(16, dtype=torch.float64))
    assert torch.equal(map_jacobian(LoRA(5, 3, 2), params, fixed).gram(), torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize(("d", "q", "rank"), [(6, 10, 4), (5, 3, 2), (4, 4, 1)])
def test_delta_of_lora_has_rank_r_times_d_plus_q_minus_r(d: int, q: int, rank: int) -> None:
    params, fixed = tensors_of(LoRA(d, q, rank))
    assert int(torch.linalg.matrix_rank(delta_jacobian(LoRA(d, q, rank), params, fixed))) == rank * (
        d + q - rank
    )


@pytest.mark.parametrize("name", MAPS)
def test_delta_jacobian_is_the_chain_rule_through_the_factors(name: str) -> None:
    params, fixed = tensors_of(MAPS[name])
    down, up = MAPS[name].factors(params, fixed)
    J = jacobian(MAPS[name], params, fixed).mT.reshape(-1, down.numel() + up.numel())
    steps = [(row[: down.numel()].reshape(down.shape), row[down.numel() :].reshape(up.shape)) for row in J]
    chained = torch.stack([(up @ one + other @ down).flatten() for one, other in steps], dim=1)
    assert close(delta_jacobian(MAPS[name], params, fixed), chained)


@pytest.mark.statement("T4")
def test_published_network() -> None:
    guide = TensorGuide.concat(
        512,
        2,
        1024,
        modes=(16, 8, 257, 16),
        ranks=(1, 2, 2, 1, 1),
        latent=Latent("fixed", (1, 2, 2, 1)),
        start="published",
    )
    params, fixed = guide.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    found = map_jacobian(guide, params, fixed)
    assert (found.num_parameters, found.nullity, found.effective_dimension) == (1140, 21, 1119)
    spectrum = found.spectrum()
    assert (spectrum.size, spectrum.rank, spectrum.lambda_min) == (1140, 1119, 0.0)


def test_operator_serves_scipy() -> None:
    params, fixed = tensors_of(MAPS["joined interleaved"])
    found = map_jacobian(MAPS["joined interleaved"], params, fixed)
    operator, gram = found.operator(), found.gram()
    v = np.arange(2.0 * len(gram)).reshape(len(gram), 2)
    assert close(torch.from_numpy(operator @ v), gram @ torch.from_numpy(v), factor=10)
    assert close(torch.from_numpy(operator @ v[:, 0]), gram @ torch.from_numpy(v[:, 0]), factor=10)
    largest = eigsh(operator, k=1, return_eigenvectors=False, v0=np.ones(len(gram)))
    assert close(torch.from_numpy(largest), torch.linalg.eigvalsh(gram)[-1:], factor=10)


def test_map_without_trains_is_refused() -> None:
    class Other(WeightMap):
        kind = "other"
        param_shapes = fixed_shapes = {}  # type: ignore[assignment]  # noqa: RUF012

        def init(self, generator=None, *, dtype=torch.float32):
            return {}, {}

        def factors(self, params, fixed) -> Factors:
            raise AssertionError

        def from_factors(self, down, up):
            raise AssertionError

    with pytest.raises(UnsupportedError, match=r"other is not made of trains; use jacobian\(\)"):
        map_jacobian(Other(), {}, {})


@pytest.mark.parametrize("name", ["lora", "tt_lora fixed", "joined unequal primes", "concat mean"])
def test_computes_where_the_params_lie(name: str, device: torch.device) -> None:
    params, fixed = tensors_of(MAPS[name])
    there = [{key: value.to(device) for key, value in tensors.items()} for tensors in (params, fixed)]
    found = map_jacobian(MAPS[name], *there)
    gram, C, v = found.gram(), found.factor(), torch.ones(found.num_parameters, dtype=torch.float64)
    assert {gram.device.type, C.device.type, found.matvec(v).device.type} == {device.type}
    assert close(gram, map_jacobian(MAPS[name], params, fixed).gram())
    assert close(torch.from_numpy(found.operator() @ v.numpy()), gram.cpu() @ v, factor=10)
