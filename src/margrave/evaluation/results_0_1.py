"""Reads results files of version 0.1, where each command wrote its own JSON structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]


def read_0_1(content: Any, source: str) -> list[Record]:
    """Convert the content of a version 0.1 results file to the current format.

    Args:
        content: the file's parsed JSON.
        source: the file's name, for messages.

    Raises:
        ValueError: the content is not that of a results file.
    """
    try:
        results = _convert(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: {type(error).__name__} {error}") from None
    if not results:
        raise ValueError(
            f"{source} holds no results; give a file that margrave evaluate --output wrote"
        )
    return results


def _convert(content: Any) -> list[Record]:
    """Detect from the keys which command wrote the content, and convert it."""
    if isinstance(content, list):
        return [_comparison_result(content)] if content else []
    if not isinstance(content, Mapping):
        return []
    pairs = {name: result for name, result in content.items() if _is_pair_result(result)}
    if len(pairs) == len(content):
        # A pair set may have any name, even one of the keys below, so this test comes first.
        return [_pair_result(name, result) for name, result in pairs.items()]
    if "groups" in content:
        return _group_results(content)
    if "probes" in content:
        return [_identification_result(content)]
    if "impostors" in content:
        return [_all_to_all_result(content)]
    if "search" in content:
        return _template_results(content)
    # Entries that are not pair sets are ignored.
    return [_pair_result(name, result) for name, result in pairs.items()]


def _is_pair_result(result: Any) -> bool:
    """True if a value is the result of a pair set, in the format of version 0.1."""
    return isinstance(result, Mapping) and "fold_accuracy" in result


def _result(
    protocol: str, name: str, content: Mapping[str, Any], counts: str, **fields: Any
) -> Record:
    """A result as a dict of the current format.

    Args:
        protocol: the protocol's registered name.
        name: the result's name.
        content: the result in the format of version 0.1.
        counts: the keys of ``content`` to copy to the result's counts, separated by spaces.
        fields: the result's other fields.
    """
    return {
        "protocol": protocol,
        "name": name,
        # Version 0.1 stored the rules under this key.
        "rules": content["protocol"],
        "counts": {key: content[key] for key in counts.split()},
        "version": "0.1.0",
        **fields,
    }


def _accept_figure(rate: Mapping[str, Any], metric: str = "TAR", **at: Any) -> Record:
    """The figure of a rate at a FAR; ``at`` adds conditions to the operating point.

    Version 0.1 stored each such rate as "tar"; ``metric`` names what it is.
    """
    return {
        "metric": metric,
        "value": rate["tar"],
        "at": {"FAR": rate["far_target"], **at},
        "interval": rate.get("interval"),
        "threshold": rate["threshold"],
        "threshold_interval": rate.get("threshold_interval"),
        "realized": rate["far"],
        "too_few": rate["too_few_impostors"],
    }


def _rank_figure(rate: Mapping[str, Any], **at: Any) -> Record:
    """The figure of an identification rate; ``at`` adds conditions to the operating point."""
    return {
        "metric": "identification rate",
        "value": rate["rate"],
        "at": {"rank": rate["rank"], **at},
        "interval": rate.get("interval"),
    }


def _pair_result(name: str, content: Mapping[str, Any]) -> Record:
    intervals = content.get("intervals") or {}
    figures: list[Record] = [
        {
            "metric": "accuracy",
            "value": content["accuracy"],
            "interval": intervals.get("accuracy"),
            "threshold": content["best_cosine"],
        },
        {"metric": "std of the folds' accuracies", "value": content["accuracy_deviation"]},
        *map(_accept_figure, content["accept_rates"]),
        {
            "metric": "EER",
            "value": content["equal_error_rate"],
            "interval": intervals.get("equal_error_rate"),
        },
        {
            "metric": "AUC",
            "value": content["area_under_roc"],
            "interval": intervals.get("area_under_roc"),
            "percent": False,
        },
    ]
    for stratum in content.get("strata", ()):
        low, high = stratum["low"], stratum["high"]
        if low is None:
            label = f"below {high:g}"
        else:
            label = f"{low:g} and above" if high is None else f"{low:g} to {high:g}"
        figures.append(
            {
                "metric": "accuracy",
                "value": stratum["accuracy"],
                "stratum": f"quality {label}",
                "details": {"pairs": stratum["pairs"], "genuine": stratum["genuine"]},
            }
        )
    return _result(
        "pairs",
        name,
        content,
        "pairs genuine folds",
        figures=figures,
        curves={
            "folds": {
                "accuracy": content["fold_accuracy"],
                "threshold": content["fold_threshold"],
            },
            "roc": {
                "threshold": content["roc_thresholds"],
                "FAR": content["roc_fpr"],
                "TAR": content["roc_tpr"],
            },
        },
        unreadable=content.get("unreadable", {}),
    )


def _group_results(content: Mapping[str, Any]) -> list[Record]:
    ratio = content["skewed_error_ratio"]
    figures = [
        {"metric": "mean accuracy", "value": content["mean"]},
        {"metric": "std of the groups' accuracies", "value": content["deviation"]},
        {"metric": "skewed error ratio", "value": ratio, "percent": False},
    ]
    groups = [_pair_result(name, group) for name, group in content["groups"].items()]
    return [*groups, _result("groups", "all groups", content, "", figures=figures)]


def _verification_result(content: Mapping[str, Any]) -> Record:
    figures = [
        *map(_accept_figure, content["accept_rates"]),
        *(_accept_figure(rate, rule="nearest FAR, as published") for rate in content["nearest"]),
        {"metric": "AUC", "value": content["area_under_roc"], "percent": False},
    ]
    return _result("templates", "1:1", content, "templates pairs genuine", figures=figures)


def _open_set_result(content: Mapping[str, Any]) -> Record:
    rates = [
        {
            "metric": "TPIR",
            "value": rate["tpir"],
            "at": {"FPIR": rate["target"]},
            "interval": rate.get("interval"),
            "threshold": rate["threshold"],
            "realized": rate["fpir"],
            "too_few": rate["too_few_probes"],
        }
        for rate in content["rates"]
    ]
    figures = [*map(_rank_figure, content["ranks"]), *rates]
    return _result("open_set", "1:N", content, "mated non_mated gallery", figures=figures)


def _template_results(content: Mapping[str, Any]) -> list[Record]:
    """Convert the results of the evaluations of templates: 1:1, all pairs, open set, closed set."""
    results = []
    if content.get("verification"):
        results.append(_verification_result(content["verification"]))
    if content.get("all_pairs"):
        results.append(_all_to_all_result(content["all_pairs"]))
    if content.get("search"):
        results.append(_open_set_result(content["search"]))
    if content.get("closed"):
        closed_set = _identification_result(content["closed"])
        # "surveillance" has the detection and identification rates (DIR) at each FAR.
        for detection in content.get("surveillance", ()):
            closed_set["figures"] += [
                {
                    "metric": "DIR",
                    "value": rate["rate"],
                    "at": {"FAR": detection["far_target"], "rank": rate["rank"]},
                    "interval": rate.get("interval"),
                    "threshold": detection["threshold"],
                    "realized": detection["far"],
                    "too_few": detection.get("too_few_probes", False),
                }
                for rate in detection["rates"]
            ]
        results.append(closed_set)
    return results


def _identification_result(content: Mapping[str, Any]) -> Record:
    counts = "probes probes_without_mate gallery distractors"
    figures = list(map(_rank_figure, content["ranks"]))
    return _result("identification", "", content, counts, figures=figures)


def _all_to_all_result(content: Mapping[str, Any]) -> Record:
    figures = [
        *map(_accept_figure, content["verification"]),
        *(_rank_figure(rank, gallery="distractors") for rank in content["ranks"]),
        *(
            _accept_figure(rate, "identification rate", rank=1)
            for rate in content["identification"]
        ),
    ]
    counts = "images identities distractors genuine impostors"
    return _result("all-to-all", "", content, counts, figures=figures)


def _comparison_result(content: list[Any]) -> Record:
    names = {"area_under_roc": "AUC", "equal_error_rate": "EER", "true_accept_rate": "TAR"}
    figures = [
        {
            "metric": f"difference in {names.get(item['metric'], item['metric'])}",
            "value": item["difference"],
            "at": {} if item["far_target"] is None else {"FAR": item["far_target"]},
            "interval": item["interval"],
            "too_few": item["too_few_impostors"],
            "details": {name: item[name] for name in ("first", "second", "p_value", "more_pairs")},
        }
        for item in content
    ]
    return {"protocol": "comparison", "figures": figures, "version": "0.1.0"}
