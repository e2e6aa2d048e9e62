"""Compare two runs of the operator suite: `python -m benchmarks.repeatability FIRST SECOND`.

Both are results of `benchmarks.operators`. Of each row and peer, the time of the peer over ours in
the one run is set against that in the other. Writes benchmarks/results/repeatability_<vectors>.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from benchmarks.report import RESULTS, markdown_table, write_json, write_text
from tilewright.baselines.machine import instruction_set

LIMIT = 0.07
SHARE = 0.9


def compare(first: dict, second: dict) -> list[dict]:
    """Return, for each row and peer with a ratio in both runs, the two ratios and their change."""
    others = {row["name"]: row["engines"] for row in second["rows"]}
    found = []
    for row in first["rows"]:
        for peer, figure in row["engines"].items():
            other = others.get(row["name"], {}).get(peer, {})
            if "ratio" in figure and "ratio" in other:
                change = other["ratio"] / figure["ratio"] - 1
                ratios = {"first": figure["ratio"], "second": other["ratio"], "change": change}
                found.append({"name": row["name"], "peer": peer, **ratios})
    return found


def share_within(changes: list[dict], limit: float = LIMIT) -> float:
    """Return the share of changes that are at most `limit`, up or down."""
    within = [abs(item["change"]) <= limit for item in changes]
    return sum(within) / max(1, len(within))


def render(changes: list[dict]) -> str:
    """Return the comparison in words and as a table, the largest changes first."""
    peers = list(dict.fromkeys(item["peer"] for item in changes))
    lines = []
    for peer in [*peers, "all"]:
        mine = [item for item in changes if peer in (item["peer"], "all")]
        sizes = sorted(abs(item["change"]) for item in mine)
        share = f"{share_within(mine):.0%}"
        lines.append([peer, str(len(mine)), share, f"{median(sizes):.1%}", f"{sizes[-1]:.0%}"])
    worst = sorted(changes, key=lambda item: -abs(item["change"]))[:12]
    rows = [
        [i["name"], i["peer"], f"{i['first']:.2f}", f"{i['second']:.2f}", f"{i['change']:+.1%}"]
        for i in worst
    ]
    header = ["peer", "ratios", f"within {LIMIT:.0%}", "median change", "largest"]
    return (
        "# Two runs of the operator suite\n\n"
        "How far the ratio of a peer's time to ours changes from one run to the next "
        "(`python -m benchmarks.repeatability`).\n\n"
        + markdown_table(header, lines)
        + "\nThe largest changes:\n\n"
        + markdown_table(["row", "peer", "first", "second", "change"], rows)
    )


def main() -> int:
    """Compare two files; fail where less than `SHARE` of the ratios is within `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    args = parser.parse_args()
    first, second = (json.loads(path.read_text()) for path in (args.first, args.second))
    changes = compare(first, second)
    if not changes:
        print("error: the two runs have no row in common", file=sys.stderr)
        return 1
    stem = RESULTS / f"repeatability_{instruction_set()}"
    machines = {"machine": first["machine"], "runs": [first["settings"], second["settings"]]}
    write_json(stem.with_suffix(".json"), {**machines, "changes": changes})
    write_text(stem.with_suffix(".md"), render(changes))
    print(render(changes))
    return 0 if share_within(changes) >= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
