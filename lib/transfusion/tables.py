"""Results of runs and comparisons -> the one Dataset with named dimensions that a chapter shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config, filters, metrics

Labels = dict[str, str | int | float]
ALL = 0  # as a number of training images: all that a fold has
Results = list[tuple[Labels, config.Spec, xr.Dataset]]


def run_table(results: Results) -> xr.Dataset:
    """Curves and test AUC of runs, unstacked along their labels; failed runs are nan."""
    wanted = ["auc", "loss", "test_auc", "test_ap"]
    whole = [result.assign({"test_auc": np.nan} | dict(result)) for _, _, result in results]
    parts = [result[[n for n in wanted if n in result]] for result in whole]
    return _unstack(_joined(parts), [labels for labels, _, _ in results], "run")


def scored_table(results: Results) -> xr.Dataset:
    """With `covariance`, what mean test AUCs over seeds owe to the test patients they share.

    It is between every two arms (model, init, model_, init_), and findings where there are several,
    of which `finding_auc` is the test AUC. No score of an image is kept, and no patient.
    """
    table = run_table(results)
    done = [(labels, result) for labels, _, result in results if "test_score" in result]
    if not done:
        return table
    labels = [labels for labels, _ in done]
    parts = _unstack(_joined([_placed(result) for _, result in done]), labels, "run")
    result = done[0][1]
    target, patient = _asked(result)[0], result["test_patient"].values
    placed = parts["placed"].mean("seed")
    if "train_images" in placed.dims:
        sizes = placed.train_images
        each = [_covariance(placed.sel(train_images=n), target, patient) for n in sizes]
        covariance = xr.concat(each, sizes)
    else:
        covariance = _covariance(placed, target, patient)
    table = table.assign(covariance=covariance, patients=len(np.unique(patient)))
    if len(target) == 1:
        return table.isel(finding=0, finding_=0, drop=True)
    return table.assign(finding_auc=parts["finding_auc"])


def _asked(result: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Target and scores (question, image) of the questions behind the AUC."""
    given = result["test_target"].values, result["test_score"].values
    return metrics.binary(*given, result.attrs.get("positive_from"))


def _placed(result: xr.Dataset) -> xr.Dataset:
    """Placements and AUC of one run, by finding."""
    asked, attrs = _asked(result), result.attrs
    questions = [str(i) for i in range(len(asked[0]))]
    names = attrs.get("names", questions) if attrs["task"] == "findings" else questions
    placed = (("finding", "image"), metrics.placements(*asked))
    aucs = ("finding", [metrics.auc(t[:, None], s[:, None]) for t, s in zip(*asked, strict=True)])
    return xr.Dataset({"placed": placed, "finding_auc": aucs}, {"finding": names})


def _covariance(placed: xr.DataArray, target: np.ndarray, patient: np.ndarray) -> xr.DataArray:
    """`metrics.patients_covariance` of placements (model, init, finding, image)."""
    names = ("model", "init", "finding")
    arms = placed.stack(arm=names).transpose("arm", "image").dropna("arm", how="all")
    question = {name: i for i, name in enumerate(placed.finding.values)}
    asked = target[[question[name] for name in arms.finding.values]]
    found, _ = metrics.patients_covariance(asked, arms.values, patient)
    index = arms.indexes["arm"]
    coords = xr.Coordinates.from_pandas_multiindex(index, "arm")
    other = index.set_names([f"{name}_" for name in names])
    coords = coords.merge(xr.Coordinates.from_pandas_multiindex(other, "arm_")).coords
    square = xr.DataArray(found, dims=("arm", "arm_"), coords=coords).unstack(["arm", "arm_"])
    order = {name: placed[name].values for name in names}
    return square.reindex(order | {f"{name}_": values for name, values in order.items()})


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


def cost_table(results: Results) -> xr.Dataset:
    """With what each network costs: parameters, multiply-adds and kept bytes an image, seconds."""
    from transfusion import models

    table = run_table(results)
    names, size = [str(m) for m in table.model.values], results[0][1].data.size
    seconds = [result.attrs.get("seconds", np.nan) for _, _, result in results]
    spent = xr.DataArray(seconds, dims="run", name="seconds").to_dataset()
    spent = _unstack(spent, [labels for labels, _, _ in results], "run")
    costs = {
        "parameters": [models.parameters(name) for name in names],
        "multiply_adds": [models.flops(name, size) // 2 for name in names],
        "memory": [models.memory(name, size) for name in names],
    }
    return table.merge(spent).assign({n: ("model", values) for n, values in costs.items()})


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
        if labels["seed"] == 0 and "first_after" in result:
            before, after = _first_layer(result)
            changes[labels["target"]] = after - before
    dims = ("target", "filter", "channel", "y", "x")
    change = xr.DataArray(np.stack(list(changes.values())), {"target": list(changes)}, dims)
    return run_table(results).assign(conv1_change=change)


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
    rows = pd.DataFrame([labels for labels, _, _ in results])  # what failed is nan, not absent
    return table.reindex({n: list(dict.fromkeys(rows[n])) for n in rows}).assign(grey=shown["grey"])


def _filters(states: tuple[np.ndarray, np.ndarray]) -> xr.Dataset:
    fits = np.stack([filters.gabor_fit(weights) for weights in states])
    grey = np.stack([weights.mean(1) for weights in states]).astype(np.float32)
    count, size = grey.shape[1:3]
    coords: dict = {"state": ["initial", "final"], "filter": range(count)}
    coords |= {"y": range(size), "x": range(size)}
    parts: dict = {
        "moved": ("filter", filters.moved(*states)),
        "gabor": (("state", "filter"), fits),
    }
    parts |= {"gabor_level": filters.gabor_level(size)}
    return xr.Dataset(parts | {"grey": (("state", "filter", "y", "x"), grey)}, coords)


def final_table(results: Results) -> xr.Dataset:
    """Comparisons of trained networks with each other."""
    table = _comparison_table(results).drop_vars("explained")
    return table.isel(pair=((table.state_a == "final") & (table.state_b == "final")).values)


def change_table(results: Results) -> xr.Dataset:
    """Comparisons of networks before and after training, and the number of their parameters."""
    from transfusion import models

    table = _comparison_table(results).drop_vars(["map", "map_null", "other"])
    counts = [models.parameters(str(model)) for model in table.model.values]
    return table.assign(parameters=("model", counts))


def _comparison_table(results: Results) -> xr.Dataset:
    """Comparisons of several models; networks are named by init, seed and state."""
    parts = []
    for _, spec, result in results:
        runs = spec.runs if isinstance(spec, config.Comparison) else ()
        nets = {run.key: (run.init.name, run.seed) for run in runs}
        names = [
            _pair_name(nets, a, b)
            for a, b in zip(result.net_a.values, result.net_b.values, strict=True)
        ]
        part = result.drop_vars(["net_a", "net_b"]).assign_coords(pair=names)
        parts.append(
            part.assign_coords(depth=("block", range(len(part.block)))).reset_coords("depth")
        )
    stacked = _joined(parts, "model")
    stacked = stacked.assign_coords(model=[labels["model"] for labels, _, _ in results])
    return stacked.assign_coords(_pair_coordinates(stacked["pair"].values))


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
