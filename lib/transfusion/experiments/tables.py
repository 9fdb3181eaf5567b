"""Results of runs and comparisons -> the one Dataset with named dimensions that a chapter shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config
from transfusion.networks import costs, gabors
from transfusion.statistics import metrics

Labels = dict[str, str | int | float]
ALL = 0  # as a number of training images: all that a fold has
Results = list[tuple[Labels, config.Spec, xr.Dataset]]


def knobs_of(results: xr.Dataset) -> dict:
    """The knobs that collected results were asked for by."""
    return json.loads(results.attrs.get("parameters", "{}"))


def run_table(results: Results) -> xr.Dataset:
    """Curves and test AUC of runs, unstacked along their labels; failed runs are nan."""
    runs = [each for each in results if isinstance(each[1], config.Run)]
    wanted = ["auc", "loss", "test_auc", "test_ap"]
    whole = [result.assign({"test_auc": np.nan} | dict(result)) for _, _, result in runs]
    parts = [result[[n for n in wanted if n in result]] for result in whole]
    return _unstack(_joined(parts), [labels for labels, _, _ in runs], "run")


def last_table(results: Results) -> xr.Dataset:
    """Validation AUC at the end of a training, `last_auc` along its labels; nan where it failed."""
    last = [result["auc"].values[-1] if "auc" in result else np.nan for _, _, result in results]
    done = [result.attrs["status"] == "done" for _, _, result in results]
    values = xr.DataArray(np.where(done, last, np.nan), dims="run", name="last_auc")
    return _unstack(values.to_dataset(), [labels for labels, _, _ in results], "run")


def scored_table(results: Results) -> xr.Dataset:
    """With what each test patient adds to the error of an arm's mean AUC over its repetitions:
    `influence` (..., fold, patient), and how many `patients` (fold,) there are; of findings, also
    `finding_auc` and `finding_influence`. And with the baselines' AUC and influence: `baseline_auc`
    (baseline, fold), and `probe_auc` (model, probe, fold) of frozen features."""
    table = run_table(results)
    scored = [each for each in results if "test_score" in each[2]]
    if not scored:
        return table
    runs = [each for each in scored if isinstance(each[1], config.Run)]
    found = _influences(runs) if runs else xr.Dataset()
    for name, label in (("baseline", "baseline"), ("probe", "probe")):
        chosen = [each for each in scored if label in each[0]]
        if chosen:
            parts = _influences(chosen).rename(influence=f"{name}_influence")
            parts = parts.drop_vars(["finding_auc", "finding_influence"], errors="ignore")
            aucs = [result[["test_auc"]] for _, _, result in chosen]
            auc = _unstack(_joined(aucs), [labels for labels, _, _ in chosen], "run")
            parts = parts.merge(auc.rename(test_auc=f"{name}_auc"))
            found = found.merge(parts, join="outer")
    found = found.assign({n: _padded(found[n]) for n in found if str(n).endswith("influence")})
    return table.merge(found.assign(patients=_patients(scored)), join="left", combine_attrs="drop")


def _patients(results: Results) -> xr.DataArray:
    """How many patients each fold tests; of several tasks, each one's."""
    frame = pd.DataFrame([labels for labels, _, _ in results])
    of = [name for name in ("variant", "target", "fold") if name in frame]
    frame["patients"] = [len(np.unique(result["test_patient"])) for _, _, result in results]
    return frame.groupby(of)["patients"].max().to_xarray()


def _influences(results: Results) -> xr.Dataset:
    """Mean over repetitions of what each patient adds to the error of an AUC, 0 where a fold has
    fewer patients; nan for an arm that never ended."""
    labels = [labels for labels, _, _ in results]
    parts = _unstack(_joined([_influence(result) for _, _, result in results]), labels, "run")
    influence = parts["influence"].mean("seed") if "seed" in parts.dims else parts["influence"]
    parts["influence"] = _padded(influence)
    whole = parts[["influence"]].mean("finding")  # nan in a question of one answer alone
    if results[0][2].attrs["task"] != "findings":
        return whole
    named = parts.rename(influence="finding_influence")
    return named.assign(influence=whole["influence"])


def _padded(influence: xr.DataArray) -> xr.DataArray:
    """0 for patients that a fold lacks, where what others of it add is known."""
    return influence.fillna(0).where(influence.notnull().any("patient"))


def _influence(result: xr.Dataset) -> xr.Dataset:
    """That of one run on each question, and its AUC."""
    given = result["test_target"].values, result["test_score"].values
    target, score = metrics.binary(*given, result.attrs.get("positive_from"))
    names = [str(i) for i in range(len(target))]
    if result.attrs["task"] == "findings":
        names = result.attrs.get("names", names)
    placed = metrics.placements(target, score)
    found = metrics.influence(target, placed, result["test_patient"].values)
    aucs = [metrics.auc(t[:, None], s[:, None]) for t, s in zip(target, score, strict=True)]
    parts = {"influence": (("finding", "patient"), found), "finding_auc": ("finding", aucs)}
    return xr.Dataset(parts, {"finding": names, "patient": range(found.shape[1])})


def small_data_table(results: Results) -> xr.Dataset:
    """`scored_table`, all images of a fold being as many as they are on average."""
    table = scored_table(results)
    sizes = [r.attrs["train_images"] for labels, _, r in results if labels["train_images"] == ALL]
    whole = round(np.mean(sizes)) if sizes else ALL
    numbers = [whole if n == ALL else int(n) for n in table.train_images.values]
    return table.assign_coords(train_images=numbers)


def performance_table(results: Results) -> xr.Dataset:
    """With what each network reached on its source task: AUC, and top-1 and top-5 accuracy."""
    found = {}
    for labels, _, result in results:
        reached = result.attrs.get("source_reached")
        if reached and labels["model"] not in found:
            found[labels["model"]] = xr.Dataset({f"source_{n}": v for n, v in reached.items()})
    table = scored_table(results)
    if not found:
        return table
    sources = _joined(list(found.values()), "model").assign_coords(model=list(found))
    return table.merge(sources.reindex(model=table.model.values))


def with_costs(results: Results) -> xr.Dataset:
    """With what each network costs: parameters, multiply-adds and kept bytes an image, seconds."""
    table = scored_table(results)
    names, size = [str(m) for m in table.model.values], results[0][1].data.size
    runs = [each for each in results if isinstance(each[1], config.Run)]
    seconds = [result.attrs.get("seconds", np.nan) for _, _, result in runs]
    spent = xr.DataArray(seconds, dims="run", name="seconds").to_dataset()
    spent = _unstack(spent, [labels for labels, _, _ in runs], "run")
    found = {
        "parameters": [costs.parameters(name) for name in names],
        "multiply_adds": [costs.flops(name, size) // 2 for name in names],
        "memory": [costs.memory(name, size) for name in names],
    }
    return table.merge(spent).assign({n: ("model", values) for n, values in found.items()})


def _joined(parts: list[xr.Dataset], dim: str = "run") -> xr.Dataset:
    """Side by side along a new dimension; nan where one lacks what another has."""
    return xr.concat(
        parts, dim, data_vars="all", coords="minimal", join="outer", combine_attrs="drop"
    )


def data_table(results: Results) -> xr.Dataset:
    """With what training added to the first layer of one network a target: after a short training
    the noise that a network starts from still hides what it learned."""
    changes = {}
    for labels, _, result in results:
        if labels["target"] not in changes and "first_after" in result:
            before, after = _first_layer(result)
            changes[labels["target"]] = after - before
    dims = ("target", "filter", "channel", "y", "x")
    change = xr.DataArray(np.stack(list(changes.values())), {"target": list(changes)}, dims)
    return scored_table(results).assign(conv1_change=change)


def _first_layer(result: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Weights (filter, channel, y, x) before and after training."""
    before, after = (result[f"first_{when}"].values for when in ("before", "after"))
    return before.astype(np.float32), after.astype(np.float32)


def filter_table(results: Results) -> xr.Dataset:
    """How far each first-layer filter moved, how well a Gabor fits it, and pictures of one seed."""
    done = [(labels, result) for labels, _, result in results if "first_after" in result]
    if not done:
        raise ValueError("every run of this chapter failed, so there are no filters to show")
    found = [(labels, _filters(_first_layer(result))) for labels, result in done]
    first = {(labels["model"], labels["init"]): part[["grey"]] for labels, part in found[::-1]}
    names: list[Labels] = [{"model": model, "init": init} for model, init in first]
    shown = _unstack(_joined(list(first.values())), names, "run")
    table = _joined([part.drop_vars(["grey", "y", "x"]) for _, part in found])
    table = _unstack(table, [labels for labels, _ in found], "run")
    scored = scored_table(results).drop_vars(["auc", "loss", "step"])
    # In its order, and with what failed: that is nan, not absent.
    table = table.reindex({n: scored[n].values for n in found[0][0]})
    return table.assign(grey=shown["grey"]).merge(scored)


def _filters(states: tuple[np.ndarray, np.ndarray]) -> xr.Dataset:
    fits = np.stack([gabors.gabor_fit(weights) for weights in states])
    grey = np.stack([weights.mean(1) for weights in states]).astype(np.float32)
    count, size = grey.shape[1:3]
    coords: dict = {"state": ["initial", "final"], "filter": range(count)}
    coords |= {"y": range(size), "x": range(size)}
    parts: dict = {
        "moved": ("filter", gabors.moved(*states)),
        "gabor": (("state", "filter"), fits),
    }
    parts |= {"gabor_level": gabors.gabor_level(size)}
    return xr.Dataset(parts | {"grey": (("state", "filter", "y", "x"), grey)}, coords)


def final_table(results: Results) -> xr.Dataset:
    """Comparisons of networks with each other, in the same state, and the AUC of each."""
    table = _comparison_table(results).drop_vars("explained")
    return table.isel(pair=(table.state_a == table.state_b).values)


def change_table(results: Results) -> xr.Dataset:
    """Comparisons of networks before and after training, the number of their parameters, and the
    AUC of each."""
    table = _comparison_table(results).drop_vars(["map", "map_null", "other"])
    counts = [costs.parameters(str(model)) for model in table.model.values]
    return table.assign(parameters=("model", counts))


def _comparison_table(results: Results) -> xr.Dataset:
    """Comparisons of several models; networks are named by init, seed and state."""
    labels, parts = [], []
    for of, spec, result in results:
        if not isinstance(spec, config.Comparison):
            continue
        nets = {run.key: (run.init.name, run.seed) for run in spec.runs}
        ends = zip(result.net_a.values, result.net_b.values, strict=True)
        part = result.drop_vars(["net_a", "net_b"])
        part = part.assign_coords(pair=[_pair_name(nets, a, b) for a, b in ends])
        labels.append(of)
        parts.append(part.assign(depth=("block", np.arange(len(part.block)))))
    stacked = _unstack(_joined(parts), labels, "run")
    stacked = stacked.assign_coords(_pair_coordinates(stacked["pair"].values))
    return stacked.merge(scored_table(results).drop_vars(["auc", "loss", "step"]))


def _pair_name(nets: Mapping[str, tuple[str, int]], a: str, b: str) -> str:
    """`init seed state | init seed state`."""
    return " | ".join(
        f"{nets[key][0]} {nets[key][1]} {state}" for key, state in (n.split(":") for n in (a, b))
    )


def _pair_coordinates(pairs: Iterable[str]) -> dict[str, tuple[str, list]]:
    fields = [[*a.split(" "), *b.split(" ")] for a, b in (pair.split(" | ") for pair in pairs)]
    names = ("init_a", "seed_a", "state_a", "init_b", "seed_b", "state_b")
    columns = dict(zip(names, map(list, zip(*fields, strict=True)), strict=True))
    return {name: ("pair", values) for name, values in columns.items()}


def _unstack(stacked: xr.Dataset, labels: list[Labels], dim: str) -> xr.Dataset:
    index = pd.MultiIndex.from_frame(pd.DataFrame(labels))
    coords = xr.Coordinates.from_pandas_multiindex(index, dim)
    table = stacked.assign_coords(coords).unstack(dim)
    # Unstacking sorts; the order of the parameters is the order of rows in tables and figures.
    order = {name: list(dict.fromkeys(values)) for name, values in pd.DataFrame(labels).items()}
    return table.reindex(order)


def between(results: xr.Dataset, a: str, b: str, state: str = "final") -> np.ndarray:
    """Mask of pairs of networks in one state, one of init `a` and one of `b`."""
    final = (results.state_a == state) & (results.state_b == state)
    there = (results.init_a == a) & (results.init_b == b)
    back = (results.init_a == b) & (results.init_b == a)
    return (final & (there | back)).values


def before_after(results: xr.Dataset, init: str) -> np.ndarray:
    """Mask of pairs of one network's initial and final state."""
    same = (results.init_a == results.init_b) & (results.seed_a == results.seed_b)
    return (same & (results.init_a == init)).values


def blocks_of(results: xr.Dataset, model: str, measure: str) -> xr.Dataset:
    """The comparisons of one model by one measure, its own blocks alone, lowest first."""
    one = results.sel(model=model, measure=measure)
    return one.dropna("block", how="all", subset=["value"]).sortby("depth")


def neurons(one: xr.Dataset, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Share of each neuron that another network predicts, before and after training.

    Of one block; (pair, neuron), pairs being those of a random network with another random one, or
    with a transferred one (`kind`).
    """
    shares = []
    for state in ("initial", "final"):
        there = (one.state_a == state) & (one.state_b == state)
        mixed = {"random", kind}
        inits = [{a, b} == mixed for a, b in zip(one.init_a.values, one.init_b.values, strict=True)]
        chosen = one.isel(pair=there.values & np.array(inits))
        order = np.lexsort([chosen.seed_b, chosen.init_b, chosen.seed_a, chosen.init_a])
        shares.append(chosen["explained"].isel(pair=order).transpose("pair", "neuron").values)
    return shares[0], shares[1]
