"""Every campaign at a small count; ``python tests/reliability/run.py`` runs them in full."""

import os

import pytest

from tests.reliability.campaign import Campaign, Tally
from tests.reliability.every import CAMPAIGNS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="faults are put to forked processes")
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda campaign: campaign.name)
def test_no_promise_is_broken(campaign: Campaign) -> None:
    if campaign.missing:
        pytest.skip(f"needs {', '.join(campaign.missing)}")
    tally = campaign.run(campaign.few)
    assert tally.cases >= campaign.few
    assert not tally.failures, "\n".join(tally.shown)


def test_names_are_unique() -> None:
    assert len({campaign.name for campaign in CAMPAIGNS}) == len(CAMPAIGNS)


def test_a_broken_promise_is_counted() -> None:
    def broken() -> str:
        raise KeyError("a bare builtin")

    tally = Tally()
    tally.attempt("case 7", broken)
    tally.attempt("case 8", lambda: None)
    tally.check(False, "case 9")
    assert (tally.cases, tally.failures, tally.outcomes) == (3, 2, {"right": 1})
    assert tally.shown[0].startswith("case 7: KeyError: 'a bare builtin'")
