"""`python -m bench`: how fast this machine is, against the plain way."""

import argparse
import os
from pathlib import Path

parser = argparse.ArgumentParser(
    "bench", description="how fast this machine is, against the plain way"
)
parser.add_argument("--quick", action="store_true", help="fewer rounds: about 3 min, not 8")
parser.add_argument("--json", action="store_true", help="one JSON object a line")
parser.add_argument("--csv", type=Path, help="also write the table there")
parser.add_argument("--avx2", action="store_true", help="again without AVX-512, AMX, bfloat16")
parser.add_argument("--section", action="append", help="only this one (may be repeated)")


def main(words: list[str] | None = None) -> None:
    asked = parser.parse_args(words)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads it when it is loaded
    from bench import report

    try:
        report.report(asked.section, asked.quick, asked.json, asked.csv, asked.avx2)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
