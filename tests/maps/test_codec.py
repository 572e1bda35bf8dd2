"""Maps to JSON and back: what is unknown or misshapen is refused by name."""

import json

import pytest

from tests.support.maps import EVERY, MAPS, TRANSFORMED
from tntune.errors import ModeError, RankError, SpecError, TntuneError
from tntune.maps import MAPS as KINDS
from tntune.maps import Geometry, LoRA, decode_map, encode

LORA = {"kind": "lora", "in_features": 4, "out_features": 3, "width": 2, "start": "zero"}
GUIDE = encode(MAPS["concat fixed"])


def changed(**values: object) -> dict[str, object]:
    return {**json.loads(json.dumps(GUIDE)), **values}


@pytest.mark.parametrize(
    ("obj", "error", "message"),
    [
        (
            None,
            SpecError,
            "a map must have one of the kinds lora, .*, norm_bounded, not None",
        ),
        ([LORA], SpecError, "a map must have one of the kinds"),
        ({}, SpecError, "unknown kind None; known are lora"),
        ({"kind": "vera"}, SpecError, "unknown kind 'vera'"),
        ({"kind": ["lora"]}, SpecError, r"unknown kind \['lora'\]"),
        (encode(MAPS["concat"])["layout"], SpecError, "a map must have one of the kinds"),
        ({**LORA, "alpha": 1}, SpecError, r"kind 'lora': missing keys \[\], unknown keys \['alpha'\]"),
        ({"kind": "lora", "width": 2}, SpecError, r"missing keys \['in_features', 'out_features'\]"),
        ({**LORA, "width": 2.0}, SpecError, "width must be a positive integer, not 2.0"),
        ({**LORA, "width": True}, SpecError, "width must be a positive integer, not True"),
        ({**LORA, "start": ["zero"]}, SpecError, "start must be one of zero, random"),
        (changed(layout=None), SpecError, "a TensorGuide needs a layout and a latent"),
        (changed(latent="fixed"), SpecError, "a TensorGuide needs a layout and a latent"),
        (changed(latent=LORA), SpecError, "a TensorGuide needs a layout and a latent"),
        (changed(ranks=[1, 2, 2, 1]), RankError, "4 modes have 3 bonds between them"),
        (changed(ranks=None), SpecError, "ranks must be a non-empty list"),
        (changed(width=2), ModeError, "concat modes .* have the product 24"),
        (changed(layout={"kind": "concat", "sizes": [2, "3"]}), SpecError, r"sizes\[1\] must be a positive"),
        (changed(layout={"kind": "joined", "pattern": 3, "sizes": [2]}), SpecError, "a layout is a pattern"),
        (changed(train=LORA), SpecError, r"unknown keys \['train'\]"),
        (changed(start="warm"), SpecError, "start must be one of zero, random, paper, published, not 'warm'"),
        (
            {**encode(MAPS["tt_lora"]), "down_train": LORA},
            SpecError,
            "down_train must be a LatentTrain, not LoRA",
        ),
        ({**encode(MAPS["tt_lora"]), "width": 3}, ModeError, "down_train has modes .* its factor has 18"),
    ],
)
def test_what_cannot_be_decoded(obj: object, error: type[TntuneError], message: str) -> None:
    with pytest.raises(error, match=message):
        decode_map(obj)


def test_defaults_may_be_left_out() -> None:
    assert decode_map({"kind": "lora", "in_features": 4, "out_features": 3, "width": 2}) == LoRA(4, 3, 2)


def test_what_has_no_form_in_json() -> None:
    class Stranger(LoRA):
        pass

    with pytest.raises(SpecError, match="Stranger has no form in JSON; known are lora, tt_lora"):
        encode(Stranger(4, 3, 2))
    assert encode(Geometry(1, 2, 3)) == [1, 2, 3]


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({cls.kind for cls in KINDS}) == len(KINDS)
    assert {type(map) for map in (*EVERY.values(), *TRANSFORMED.values())} == set(KINDS)
