"""Write the report of one run, or of several side by side, as one self-contained HTML page.

    python scripts/report.py runs/demo-20260101-120000-42                 # writes report.html into the run's folder
    python scripts/report.py runs/ocr-1 runs/ocr-2 runs/maps-1 --out compared.html

Runs that differ only by their seed become one line in each chart, with their spread.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # config/ is not installed: it belongs to the checkout

from config import base  # noqa: E402
from flow_grpo.training.report.page import read_run, write_report  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the one run's folder")
    args = parser.parse_args()
    if args.out is None and len(args.runs) > 1:
        parser.error("several runs share one page: say where it goes with --out FILE.html")
    for run in args.runs:
        if not run.is_dir():
            parser.error(f"{run} is no folder; give the folder of a run, such as runs/tiny_ocr_map")
    out = args.out or args.runs[0] / "report.html"
    if not out.parent.is_dir():
        parser.error(f"--out {out}: there is no folder {out.parent}; make it first")
    try:
        runs = [read_run(run, base.get_config().to_dict()) for run in args.runs]
    except ValueError as error:
        sys.exit(f"report.py: {error}")
    write_report(out, runs)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
