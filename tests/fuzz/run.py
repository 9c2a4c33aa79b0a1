"""Fuzzing by hand: `python tests/fuzz/run.py --cases 1000000 [--seed N] [--target PART]`.

Goes round the targets until each has had `--cases` mutations. The first case that raises something other than a
`VaultError`, or takes more than half a minute, is printed with all it takes to repeat it, and ends the run with 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback

from fuzz_targets import TARGETS, accepts, cases


def hang(*_: object) -> None:
    raise RuntimeError("the case takes more than half a minute")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="mutations of each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", default="", help="only targets whose name holds this")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, hang)
    print(f"seed {options.seed}")
    for target in TARGETS:
        if options.target not in target.name:
            continue
        accepted = 0
        for number, data in enumerate(cases(target, options.cases, options.seed)):
            signal.alarm(30)
            try:
                accepted += accepts(target, data)
            except Exception:  # noqa: BLE001 (any one is a finding)
                traceback.print_exc()
                print(f"target {target.name!r}, seed {options.seed}, case {number}:\n{data.hex()[:4000]}")
                return 1
        signal.alarm(0)
        print(f"{target.name}: {options.cases} cases, {accepted} accepted", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
