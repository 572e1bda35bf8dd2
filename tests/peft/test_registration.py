"""Registration: PEFT finds our classes by text and by member, once, and nothing of it is replaced."""

import copy
import pickle
import subprocess
import sys

import pytest

pytest.importorskip("peft")

from peft import LoraConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora import LoraModel

from tests.peft.models import MARKS, VARIANTS
from tntune.errors import SpecError, UnsupportedError
from tntune.peft import (
    SharedTensorGuideConfig,
    SharedTensorGuideModel,
    TensorGuideConfig,
    TensorGuideModel,
    TensorGuidePeftType,
    register,
)
from tntune.peft.registration import check_peft

pytestmark = MARKS

REGISTERED = {
    TensorGuidePeftType.TENSORGUIDE: (TensorGuideConfig, TensorGuideModel),
    TensorGuidePeftType.TENSORGUIDE_SHARED: (SharedTensorGuideConfig, SharedTensorGuideModel),
}
REGISTRIES = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)


@pytest.mark.parametrize("member", TensorGuidePeftType)
def test_lookups_by_text_and_by_member_find_the_same(member: TensorGuidePeftType) -> None:
    config, model = REGISTERED[member]
    for key in (member, member.value, str(member.value)):
        found = [registry[key] for registry in REGISTRIES]
        assert found == [config, model, model.prefix]
    assert member == member.name == member.value


@pytest.mark.parametrize("member", TensorGuidePeftType)
def test_registering_twice_changes_nothing(member: TensorGuidePeftType) -> None:
    before = [dict(registry) for registry in REGISTRIES]
    register(member, *REGISTERED[member])
    assert [dict(registry) for registry in REGISTRIES] == before


def test_another_class_of_the_name_is_refused() -> None:
    before = [dict(registry) for registry in REGISTRIES]
    with pytest.raises(SpecError, match=r"TENSORGUIDE already, tntune\.peft\.config\.TensorGuideConfig"):
        register(TensorGuidePeftType.TENSORGUIDE, LoraConfig, LoraModel)
    assert [dict(registry) for registry in REGISTRIES] == before


@pytest.mark.parametrize("old", ["0.19.1", "0.20.0", "0.21.0.dev0"])
def test_an_old_peft_is_refused(old: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"needs peft 0\.21\.0 or newer, not {old}: pip install -U"):
        check_peft(old)
    check_peft("0.21.0")


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
def test_a_type_survives_copies(cls: type[TensorGuideConfig]) -> None:
    config = cls(target_modules=["fc"])
    for copied in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert copied.peft_type is config.peft_type
        assert copied.to_dict() == config.to_dict()


def test_tntune_does_not_import_peft() -> None:
    code = "import sys, tntune; sys.exit(any(name in sys.modules for name in ('peft', 'transformers')))"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


def test_tntune_works_where_peft_cannot_be_imported() -> None:
    code = (
        "import sys; sys.modules['peft'] = sys.modules['transformers'] = None\n"
        "import tntune.adapters, tntune.convert, tntune.cli, tntune.theory\n"
        "try:\n    import tntune.peft\nexcept ImportError:\n    sys.exit(0)\nsys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
