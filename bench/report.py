"""What is printed of the measurements, and the tables that the book shows of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from transfusion import records, store

from bench import sections
from bench.timing import Row

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def report(
    names: list[str] | None, quick: bool, as_json: bool, csv: Path | None, avx2: bool
) -> None:
    """Print what `run` gives as it comes; `csv` keeps the table that the book shows, with `avx2`
    beside it the same of libraries that are held to what every processor has."""
    lines, found = [], sections.run(names, quick=quick)
    facts = next(found)
    text = "\n".join(f"{name:22} {value}" for name, value in _shown(facts).items())
    print(json.dumps(facts) if as_json else f"{text}\n", flush=True)
    for row in tqdm(found, "bench", unit="row", disable=None):
        lines.append(_line(row))
        text = "  ".join(filter(None, lines[-1].values()))
        print(json.dumps(asdict(row) | lines[-1]) if as_json else text, flush=True)
    if avx2:
        _beside(lines, names, quick)
    if csv:
        _save(csv, lines)
        about = [{"what": name, "value": value} for name, value in _shown(facts).items()]
        _save(csv.with_stem(f"{csv.stem}-setting"), about)


def _beside(lines: list[dict], names: list[str] | None, quick: bool) -> None:
    """Add to each line what the same row is without AVX-512, AMX and bfloat16."""
    command = [sys.executable, "-m", "bench", "--json"]
    command += [word for name in names or [] for word in ("--section", name)]
    command += ["--quick"] if quick else []
    told = subprocess.run(command, env=os.environ | AVX2, stdout=subprocess.PIPE, check=True)
    _, *rows = map(json.loads, told.stdout.splitlines())
    held = {row["what"]: row for row in rows}
    for line in lines:
        other = held[line["what"]]
        line |= {f"{name}, AVX2": other[name] for name in ("ratio", "verdict")}
        del line["plain"], line["ours"]  # or the table is too wide for a page
        print("  ".join(filter(None, (line["what"], "AVX2", other["ratio"], other["verdict"]))))


def _save(path: Path, lines: list[dict]) -> None:
    frame = pd.DataFrame(lines)
    with store.atomic(path) as temporary:
        frame.loc[:, (frame != "").any()].to_csv(temporary, index=False)


def _shown(facts: dict) -> dict:
    """The setting, and the ceilings in units that people use."""
    short = {k: f"{v / 1e9:.0f} G/s" if isinstance(v, float) else v for k, v in facts.items()}
    return short | {"flags": " ".join(facts["flags"])}


def _line(row: Row) -> dict[str, str]:
    """A row as printed and as shown in the book."""
    goals = [f"ratio {row.goal:.3g}" if row.goal else ""]
    goals.append(f"ceiling {row.ceiling_goal:.2f}" if row.ceiling_goal else "")
    return {
        "what": f"{row.section}: {row.case}",
        "ratio": f"{row.ratio:.2f} [{min(row.ratios):.2f}, {max(row.ratios):.2f}]",
        "of ceiling": f"{row.of_ceiling:.2f}" if row.of_ceiling else "",
        "AUC": row.auc,
        "goal": ", ".join(filter(None, goals)),
        "verdict": row.verdict,
        "plain": _amount(row.plain, row.unit),
        "ours": _amount(row.ours, row.unit),
        "n": f"{len(row.ratios)}",
    }


def _amount(value: float, unit: str) -> str:
    value = 1e3 * value if unit == "ms" else value
    return f"{float(f'{value:.3g}'):,g} {unit}"


def _of_step(told: dict) -> dict:
    return {
        "on": told["device"],
        "network": told["spec"]["model"],
        "pixels": told["spec"]["data"]["size"],
        "plain (ms)": told["eager_ms"],
        "graph (ms)": told["graph_ms"],
        "losses apart": told["losses_apart"],
    }


def recorded(*names: str) -> pd.DataFrame:
    """What steps took on GPUs, plain and as a CUDA graph, by the records of studies: the median of
    n trainings with the least and the greatest; others ran beside them."""
    facts = [told for name in names for told in records.facts(name).values()]
    measured = pd.DataFrame([_of_step(told) for told in facts if "graph_ms" in told])
    grouped = measured.groupby(["on", "network", "pixels"])
    ends = [grouped.quantile(q) for q in (0.5, 0, 1)]
    shown = ends[0].astype(str)
    for column in shown:
        told = zip(*(end[column] for end in ends), strict=True)
        shown[column] = [f"{mid:.3g} [{low:.3g}, {high:.3g}]" for mid, low, high in told]
    return shown.assign(n=grouped.size()).reset_index()
