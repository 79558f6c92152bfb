"""Build a report page from runs, studies and result files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from margrave.data import open_source
from margrave.evaluation import Result
from margrave.evaluation.figure_text import figure_interval_text, value_text
from margrave.files import read_bytes, read_yaml
from margrave.losses import create as create_loss
from margrave.progress import Progress
from margrave.registry import names_from_file, texts_in
from margrave.report.cleaning import clean_text
from margrave.report.contents import Block, Lab, Page, Section, Text, TextBlock
from margrave.report.figures import counts_table
from margrave.report.inputs import ReportInput, study_losses
from margrave.report.lab import lab_tables
from margrave.report.lab_charts import lab_charts
from margrave.report.naming import distinct_names
from margrave.report.page import anchor
from margrave.report.sections.adaptation import adaptation_section, norm_quality_section
from margrave.report.sections.faces import classes_section, hardest_section
from margrave.report.sections.groups import groups_section
from margrave.report.sections.pair_scores import (
    calibration_section,
    curves_section,
    discard_section,
    score_section,
)
from margrave.report.sections.rates import figures_section, rates_section, strata_section
from margrave.report.sections.study import study_section
from margrave.report.sections.training import training_section
from margrave.runs import open_evaluation_set
from margrave.training import read_adaptation

Note = Callable[[str], None]
"""Called with a message about what a report leaves out."""
MAX_LAB_LOSSES = 10
_CHOSEN_LOSSES = 4
"""Number of losses that the margin lab initially shows."""
MAX_SETTINGS = 100_000
"""Longest text of settings that a page shows, in characters."""
MAX_SYNTHETIC = 200_000
"""Largest number of synthetic identities, and of images per identity, that a report opens."""


def build_report(
    inputs: Sequence[ReportInput],
    *,
    title: str = "",
    faces: bool = True,
    lab: bool = True,
    trust_code: bool = False,
    note: Note = lambda text: None,
    progress: Progress | None = None,
) -> Page:
    """Build the report page of one or more inputs.

    Args:
        inputs: what to report, from `margrave.report.inputs.open_input`.
        title: the page's title; by default the inputs' names.
        faces: show face thumbnails, for runs whose images can still be read.
        lab: add the margin lab with the losses of runs and studies.
        trust_code: import and run custom code that a run or study names.
        note: called with a message for each part that is left out.
        progress: called with (losses done, total) while the margin lab is computed.
    """
    results = list(_distinguish_results(inputs))
    sections = [_summary(inputs, results)]
    sections += _study_sections(inputs)
    if results:
        sections.append(Section("What was compared", [counts_table(results)]))
        sections += _result_sections(results)
    runs = _metrics_of_runs(inputs)
    sections += [training_section(runs), adaptation_section(runs)]
    for report_input in inputs:
        if report_input.run is not None and faces:
            sections += _face_sections(report_input, trust_code, note)
    if lab:
        sections.append(_lab_section(inputs, trust_code, note, progress))
    sections += [_settings_section(report_input) for report_input in inputs]
    names = ", ".join(report_input.name for report_input in inputs)
    title = clean_text(title or f"Report of {names}")
    return Page(title, _subtitle(inputs), _numbered_sections(sections))


def _distinguish_results(inputs: Sequence[ReportInput]) -> Iterator[Result]:
    """Yield all results except those of studies, with distinct names for different inputs.

    If results of several inputs share a name, each gets its input's name as a prefix.
    """
    results = [
        (index, input_name, result)
        for index, (input_name, report_input) in enumerate(_distinguish_inputs(inputs))
        for result in report_input.results
        if result.protocol != "study"
    ]
    for _, input_name, result in results:
        inputs_with_name = {index for index, _, other in results if other.name == result.name}
        is_shared = len(inputs_with_name) > 1
        yield replace(result, name=f"{input_name}, {result.name}") if is_shared else result


def _distinguish_inputs(inputs: Sequence[ReportInput]) -> list[tuple[str, ReportInput]]:
    """(name, input) of each input; further inputs of the same name get a number."""
    names = distinct_names([report_input.name for report_input in inputs])
    return list(zip(names, inputs, strict=True))


def _metrics_of_runs(inputs: Sequence[ReportInput]) -> dict[str, Any]:
    """Run name -> metrics lines; further runs of the same name get a number."""
    runs = [report_input for report_input in inputs if report_input.run is not None]
    return {name: report_input.metrics for name, report_input in _distinguish_inputs(runs)}


def _subtitle(inputs: Sequence[ReportInput]) -> str:
    counts = {
        "study": sum(report_input.study is not None for report_input in inputs),
        "run": sum(report_input.run is not None for report_input in inputs),
    }
    counts["result file"] = len(inputs) - sum(counts.values())
    parts = [
        f"{count} × {kind}" if count > 1 else f"a {kind}" for kind, count in counts.items() if count
    ]
    return "Face recognition: " + ", ".join(parts)


def _summary(inputs: Sequence[ReportInput], results: Sequence[Result]) -> Section:
    """The first section, in words: the questions and verdicts of studies, and the main figures."""
    blocks: list[Block] = []
    for report_input in inputs:
        for result in _study_results(report_input):
            if question := result.settings.get("question"):
                paragraph = Text(clean_text(str(question), 2000))
                if paragraph not in blocks:
                    blocks.append(paragraph)
            # A study's first note is its verdict.
            blocks += [Text(f"{result.name}: {text}", "verdict") for text in result.notes[:1]]
        if report_input.run is not None and not report_input.results:
            text = (
                f"{report_input.name} has no evaluation results. Evaluate its model with margrave "
                "evaluate --output results.json, and pass that file to margrave report as well."
            )
            blocks.append(Text(text, "verdict"))
    blocks += [Text(text, "verdict") for result in results for text in _main_figures(result)]
    if len(results) > 1 and len(_comparable_groups(results)) > 1:
        blocks.append(
            Text(
                "These results were measured on different pairs or by different protocols. They "
                "are shown side by side, but their numbers cannot be compared.",
                "note",
            )
        )
    elif len(results) > 1:
        blocks.append(
            Text(
                "To test whether two of these results differ by more than chance, run: margrave "
                "compare FIRST SECOND",
                "note",
            )
        )
    return Section("In short", blocks)


def _main_figures(result: Result) -> Iterator[str]:
    """Yield a sentence with the first three figures, if there are any.

    Figures of strata, from too few pairs, and of standard deviations are left out.
    """
    parts = []
    for figure in result.figures:
        if figure.stratum or figure.value is None or figure.too_few:
            continue
        if figure.metric.startswith("std of"):
            continue
        interval = f" ({figure_interval_text(figure)})" if figure.interval is not None else ""
        parts.append(f"{figure.label} {value_text(figure)}{interval}")
        if len(parts) == 3:
            break
    if parts:
        yield f"{result.name or result.protocol}: {'; '.join(parts)}."


def _comparable_groups(results: Sequence[Result]) -> list[list[Result]]:
    """Group the results: those of one group were measured on the same images or pairs."""
    groups: dict[object, list[Result]] = {}
    for index, result in enumerate(results):
        scores = result.scores
        if scores is not None and scores.images_digest:
            key: object = scores.images_digest
        elif scores is not None:
            # The images' names are unknown, so equal labels stand for equal pairs.
            key = scores.same, scores.identities
        elif result.origin.images_digest:
            key = result.protocol, result.origin.images_digest
        else:
            key = index
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _study_results(report_input: ReportInput) -> list[Result]:
    return [result for result in report_input.results if result.protocol == "study"]


def _study_sections(inputs: Sequence[ReportInput]) -> Iterator[Section]:
    for report_input in inputs:
        for result in _study_results(report_input):
            yield study_section(result)
            runs = report_input.cell_metrics.get(result.name, {})
            for section in (training_section(runs), adaptation_section(_adaptive_runs(runs))):
                yield replace(section, title=f"{section.title}: {result.name}, first seed")


def _adaptive_runs(runs: Mapping[str, Any]) -> dict[str, Any]:
    """The runs whose loss has running statistics or re-weights hard negatives."""
    return {
        name: lines
        for name, lines in runs.items()
        if any(_shows_adaptation(line) for line in lines)
    }


def _shows_adaptation(line: Mapping[str, Any]) -> bool:
    """Whether a metrics line holds a running statistic (a dot in its key) or hard negatives."""
    if line["kind"] == "training":
        return any("." in key for key in line)
    return line["kind"] == "adaptation" and (line.get("hard_share") or 0) > 0


def _result_sections(results: Sequence[Result]) -> Iterator[Section]:
    several_results = len(results) > 1
    for result in results:
        yield _with_result_name(figures_section(result), result, several_results)
    comparable_groups = _comparable_groups(results)
    for group in comparable_groups:
        yield _with_result_name(curves_section(group), group[0], len(comparable_groups) > 1)
    yield rates_section(results)
    summaries = [result for result in results if result.protocol == "groups"]
    for index, result in enumerate(results):
        if result.protocol == "groups":
            # This summary follows the results of its groups, one result per group.
            start = max(0, index - result.counts.get("groups", 0))
            section = groups_section(results[start:index])
            yield _with_result_name(section, result, len(summaries) > 1)
    for result in results:
        norm_curve = result.curves.get("norm by quality")
        for section in (
            score_section(result),
            strata_section(result),
            norm_quality_section(norm_curve),
            discard_section(result),
            calibration_section(result),
        ):
            yield _with_result_name(section, result, several_results)


def _with_result_name(section: Section, result: Result, several: bool) -> Section:
    """The section, with the result's name in its title if there are several such sections."""
    if not several:
        return section
    return replace(section, title=f"{section.title}: {result.name or result.protocol}")


def _face_sections(report_input: ReportInput, trust_code: bool, note: Note) -> Iterator[Section]:
    """Yield a run's sections with thumbnails, as far as its images can still be read."""
    assert report_input.run is not None
    try:
        config = report_input.run.read_config(trust_code=trust_code)
    except ValueError as error:
        note(f"no thumbnails: {error}")
        return
    for result in report_input.results:
        test_set = config.evaluation.sets.get(result.name)
        if test_set is None or (test_set.images and _is_refused(test_set.images, note)):
            continue
        try:
            section = hardest_section(result, *open_evaluation_set(test_set))
        except (OSError, ValueError) as error:
            note(f"no thumbnails of {result.name}: {error}")
            text = clean_text(f"Not shown: the images are gone or changed ({error}).", 2000)
            section = Section("Hardest pairs", [Text(text, "note")])
        yield _with_result_name(section, result, len(report_input.results) > 1)
    records = [
        read_adaptation(line) for line in report_input.metrics if line["kind"] == "adaptation"
    ]
    record = records[-1] if records else None
    if record is None or not record.classes or _is_refused(config.data.train, note):
        return
    try:
        yield classes_section(record, open_source(config.data.train, labeled=True))
    except (OSError, ValueError) as error:
        note(f"no thumbnails of the training images: {error}")


def _is_refused(source: Mapping[str, Any], note: Note) -> bool:
    """Whether a data source is not opened: it needs the network or is too large.

    `note` is called with the reason.
    """
    remote = [text for text in texts_in(source) if "://" in text]
    if remote:
        note(f"no thumbnails from {clean_text(remote[0])}: a report makes no network requests")
        return True
    sizes = [source.get(name, 1) for name in ("num_identities", "images_per_identity")]
    if not all(isinstance(size, int) and size <= MAX_SYNTHETIC for size in sizes):
        note(
            "no thumbnails of synthetic faces: a report opens at most "
            f"{MAX_SYNTHETIC:,} identities and as many images per identity"
        )
        return True
    return False


def _lab_section(
    inputs: Sequence[ReportInput], trust_code: bool, note: Note, progress: Progress | None
) -> Section:
    title = "Margin lab"
    losses: dict[str, Any] = {}
    for report_input in inputs:
        try:
            losses |= _create_losses(report_input, trust_code)
        except ValueError as error:
            note(f"no margin lab for {report_input.name}: {error}")
    if not losses:
        return Section(title)
    try:
        tables = lab_tables(dict(list(losses.items())[:MAX_LAB_LOSSES]), progress)
    except ValueError as error:
        note(f"no margin lab: {error}")
        return Section(title)
    chosen = [name for name in losses if name in tables["losses"]][:_CHOSEN_LOSSES]
    return Section(title, [Lab({**tables, "chosen": chosen}, lab_charts())])


def _create_losses(report_input: ReportInput, trust_code: bool) -> dict[str, Any]:
    """Create the losses of a run or a study; custom code in them needs `trust_code`."""
    specs: dict[str, Any] = {}
    if report_input.run is not None:
        spec = report_input.run.read_yaml().get("loss")
        if not isinstance(spec, Mapping):
            raise ValueError(f"{report_input.run.config}: loss must be a block of settings")
        specs[clean_text(str(spec.get("kind", "loss")))] = spec
    for result in _study_results(report_input):
        # Leave out results of tuned losses, which are named "CONDITION, tuned".
        if result.name == result.settings.get("condition", result.name):
            specs |= study_losses(result)
    source = report_input.run.config if report_input.run is not None else report_input.name
    with names_from_file(source, trust_code):
        return {name: create_loss(spec) for name, spec in specs.items()}


def _settings_section(report_input: ReportInput) -> Section:
    """The parsed settings, never the file's text: the file may be a link to a private one."""
    if report_input.run is not None:
        settings: Any = report_input.run.read_yaml()
    elif report_input.study is not None:
        path = report_input.study.settings
        settings = read_yaml(read_bytes(path).decode("utf-8", "replace"), str(path))
    else:
        return Section("Settings")
    if not isinstance(settings, Mapping):
        return Section("Settings")
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    text = clean_text(text, MAX_SETTINGS)
    block = TextBlock(f"All settings of {report_input.name}", text)
    return Section(f"Settings: {report_input.name}", [block])


def _numbered_sections(sections: Sequence[Section]) -> list[Section]:
    """Leave out empty sections and number equal titles, because each title is a link target."""
    counts: dict[str, int] = {}
    unique = []
    for section in sections:
        if section.blocks:
            fragment = anchor(section.title)
            number = counts[fragment] = counts.get(fragment, 0) + 1
            title = section.title if number == 1 else f"{section.title} ({number})"
            unique.append(replace(section, title=title))
    return unique


def lab_page(losses: Mapping[str, Any] | None, tables: Mapping[str, Any]) -> Page:
    """Build a page that holds only the margin lab.

    Args:
        losses: losses by name, of which the page initially shows the first four; None initially
            shows four well-known losses.
        tables: the tables of all losses, from `margrave.report.lab.lab_tables`.
    """
    chosen = {} if losses is None else {"chosen": list(losses)[:_CHOSEN_LOSSES]}
    lab = Lab({**tables, **chosen}, lab_charts())
    subtitle = "What each loss does to a sample, as its own code computes it"
    return Page("Margin lab", subtitle, [Section("Losses", [lab])])
