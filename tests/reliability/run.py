"""Run the campaigns at their full counts, and keep their results in RELIABILITY.md.

    python tests/reliability/run.py                       # all of them, about an hour on one core
    python tests/reliability/run.py kills disk            # these only; the rows of the others stay
    python tests/reliability/run.py header --cases 500    # a first look, of which nothing is written
    python tests/reliability/run.py --list                # names and promises

A campaign draws each of its cases from the case's number alone, so every run tries the same ones.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # in place of this folder

from tests.reliability.campaign import Campaign, Tally
from tests.reliability.every import CAMPAIGNS
from tests.reliability.page import keep
from tests.reliability.versions import TRIALS


def row(campaign: Campaign, tally: Tally, seconds: float) -> str:
    """A campaign's line of the table."""
    ends = ", ".join(f"{count:,} {end}" for end, count in sorted(tally.outcomes.items(), key=lambda x: -x[1]))
    notes = "".join(f"; {note}" for note in tally.notes)
    cells = (
        campaign.name,
        f"{campaign.promise} ({ends}{notes})",
        f"{tally.cases:,}",
        str(tally.failures),
        f"{seconds:.0f}",
        f"`python tests/reliability/run.py {campaign.name}`",
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def main() -> int:
    """Run what was asked for; the number of broken promises, at most 1, is the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="Campaigns; all by default.")
    parser.add_argument("--cases", type=int, help="Cases of each campaign; writes nothing.")
    parser.add_argument("--list", action="store_true", help="Print names and promises.")
    given = parser.parse_args()
    unknown = set(given.names) - {each.name for each in CAMPAIGNS}
    if unknown:
        parser.error(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in CAMPAIGNS)}"
        )
    chosen = [each for each in CAMPAIGNS if each.name in given.names or not given.names]
    broken = 0
    for campaign in chosen:
        if given.list:
            sys.stdout.write(f"{campaign.name}: {campaign.promise}\n")
            continue
        if campaign.missing:
            sys.stdout.write(f"{campaign.name}: not run, needs {', '.join(campaign.missing)}\n")
            continue
        began = time.perf_counter()
        tally = campaign.run(given.cases or campaign.full)
        line = row(campaign, tally, time.perf_counter() - began)
        sys.stdout.write("\n".join([line, *tally.shown]) + "\n")
        sys.stdout.flush()
        broken += tally.failures
        if given.cases is None:
            keep(campaign.name, line, CAMPAIGNS, [trial.name for trial in TRIALS])
    return min(broken, 1)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
