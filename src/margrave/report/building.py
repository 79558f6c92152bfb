"""From a run, a study or results to a page."""

from __future__ import annotations

import itertools
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
MAX_LAB_LOSSES = 10
MAX_SETTINGS = 100_000
"""Characters of the settings that are shown."""
MAX_SYNTHETIC = 200_000
"""Largest number of synthetic identities, and of images of each, that are opened."""


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
    """Build the page of one or more inputs.

    Args:
        inputs: what to report, see `margrave.report.inputs.open_input`.
        title: the page's title; by default the inputs' names.
        faces: show thumbnails of faces, for runs whose images are still there.
        lab: add the margin lab with the losses of runs and studies.
        trust_code: import and run custom code that a run or study names.
        note: called with each message about what was left out.
        progress: called with (losses drawn, total) while the margin lab is computed.
    """
    results = list(_named_apart(inputs))
    sections = [_summary(inputs, results)]
    sections += _study_sections(inputs)
    if results:
        sections.append(Section("What was compared", [counts_table(results)]))
        sections += _result_sections(results)
    runs = _metrics_of_runs(inputs)
    sections += [training_section(runs), adaptation_section(runs)]
    for each in inputs:
        if each.run is not None and faces:
            sections += _face_sections(each, trust_code, note)
    if lab:
        sections.append(_lab_section(inputs, trust_code, note, progress))
    sections += [_settings_section(each) for each in inputs]
    names = ", ".join(each.name for each in inputs)
    title = clean_text(title or f"Report of {names}")
    return Page(title, _subtitle(inputs), _unique(sections))


def _named_apart(inputs: Sequence[ReportInput]) -> Iterator[Result]:
    """All results but studies', with their input's name where several inputs have one name."""
    results = [(each, r) for each in inputs for r in each.results if r.protocol != "study"]
    for each, result in results:
        sources = {other.name for other, r in results if r.name == result.name}
        clash = len(sources) > 1
        yield replace(result, name=f"{each.name}, {result.name}") if clash else result


def _metrics_of_runs(inputs: Sequence[ReportInput]) -> dict[str, Any]:
    """The metrics of all runs by name; runs of one name are numbered."""
    runs: dict[str, Any] = {}
    for each in inputs:
        if each.run is not None:
            numbered = (f"{each.name} ({number})" for number in itertools.count(2))
            names = itertools.chain([each.name], numbered)
            runs[next(name for name in names if name not in runs)] = each.metrics
    return runs


def _subtitle(inputs: Sequence[ReportInput]) -> str:
    kinds = {
        "study": sum(each.study is not None for each in inputs),
        "run": sum(each.run is not None for each in inputs),
    }
    kinds["file of results"] = len(inputs) - sum(kinds.values())
    parts = [
        f"{count} × {kind}" if count > 1 else f"a {kind}" for kind, count in kinds.items() if count
    ]
    return "Face recognition: " + ", ".join(parts)


def _summary(inputs: Sequence[ReportInput], results: Sequence[Result]) -> Section:
    """What the reader came for, in words."""
    blocks: list[Block] = []
    for each in inputs:
        for result in _study_results(each):
            if question := result.settings.get("question"):
                text = Text(clean_text(str(question), 2000))
                blocks += [] if text in blocks else [text]
            blocks += [Text(f"{result.name}: {text}", "verdict") for text in result.notes[:1]]
        if each.run is not None and not each.results:
            text = (
                f"{each.name} was not evaluated while it was trained. Give the file that margrave "
                "evaluate writes with --output beside it."
            )
            blocks.append(Text(text, "verdict"))
    blocks += [Text(text, "verdict") for result in results for text in _sentence(result)]
    if len(results) > 1 and len(_comparable(results)) > 1:
        blocks.append(
            Text(
                "These results were measured on different pairs or by different protocols; they "
                "stand beside each other, and their numbers cannot be compared.",
                "note",
            )
        )
    elif len(results) > 1:
        blocks.append(
            Text("Whether these differ by more than chance: margrave compare FIRST SECOND.", "note")
        )
    return Section("In short", blocks)


def _sentence(result: Result) -> Iterator[str]:
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


def _comparable(results: Sequence[Result]) -> list[list[Result]]:
    """Results grouped by what they were measured on."""
    groups: dict[object, list[Result]] = {}
    for number, result in enumerate(results):
        scores = result.scores
        if scores is not None and scores.images_digest:
            key: object = scores.images_digest
        elif scores is not None:
            key = scores.same, scores.identities
        elif result.origin.images_digest:
            key = result.protocol, result.origin.images_digest
        else:
            key = number
        groups.setdefault(key, []).append(result)
    return list(groups.values())


def _study_results(each: ReportInput) -> list[Result]:
    return [result for result in each.results if result.protocol == "study"]


def _study_sections(inputs: Sequence[ReportInput]) -> Iterator[Section]:
    for each in inputs:
        for result in _study_results(each):
            yield study_section(result)
            runs = each.cells.get(result.name, {})
            for section in (training_section(runs), adaptation_section(_adaptive(runs))):
                yield replace(section, title=f"{section.title}: {result.name}, first seed")


def _adaptive(runs: Mapping[str, Any]) -> dict[str, Any]:
    """The runs whose loss adapts something: statistics, hard negatives, or a margin by norm."""
    return {name: lines for name, lines in runs.items() if any(_adapts(line) for line in lines)}


def _adapts(line: Mapping[str, Any]) -> bool:
    if line["kind"] == "training":
        return any("." in key for key in line)
    return line["kind"] == "adaptation" and (line.get("hard_share") or 0) > 0


def _result_sections(results: Sequence[Result]) -> Iterator[Section]:
    groups = _comparable(results)
    for result in results:
        yield _named(figures_section(result), result, results)
    for group in groups:
        yield _named(curves_section(group), group[0], [each[0] for each in groups])
    yield rates_section(results)
    yield groups_section(results)
    for result in results:
        curve = result.curves.get("norm by quality")
        for section in (
            score_section(result),
            strata_section(result),
            norm_quality_section(curve),
            discard_section(result),
            calibration_section(result),
        ):
            yield _named(section, result, results)


def _named(section: Section, result: Result, results: Sequence[Result]) -> Section:
    """The section with the result's name, where there are several."""
    if len(results) < 2:
        return section
    return replace(section, title=f"{section.title}: {result.name or result.protocol}")


def _face_sections(each: ReportInput, trust_code: bool, note: Note) -> Iterator[Section]:
    assert each.run is not None
    try:
        config = each.run.read_config(trust_code=trust_code)
    except ValueError as error:
        note(f"no thumbnails: {error}")
        return
    for result in each.results:
        entry = config.evaluation.sets.get(result.name)
        if entry is None or (entry.images and _is_unsafe(entry.images, note)):
            continue
        try:
            section = hardest_section(result, *open_evaluation_set(entry))
        except (OSError, ValueError) as error:
            note(f"no thumbnails of {result.name}: {error}")
            text = clean_text(f"Not shown: the images are gone or changed ({error}).", 2000)
            section = Section("Hardest pairs", [Text(text, "note")])
        yield _named(section, result, each.results)
    records = [read_adaptation(line) for line in each.metrics if line["kind"] == "adaptation"]
    record = records[-1] if records else None
    if record is None or not record.classes or _is_unsafe(config.data.train, note):
        return
    try:
        yield classes_section(record, open_source(config.data.train, labeled=True))
    except (OSError, ValueError) as error:
        note(f"no thumbnails of the training images: {error}")


def _is_unsafe(source: Mapping[str, Any], note: Note) -> bool:
    """Whether opening a source that a file names would ask other machines, or take too much."""
    remote = [text for text in texts_in(source) if "://" in text]
    if remote:
        note(f"no thumbnails from {clean_text(remote[0])}: a report asks no other machine")
        return True
    sizes = [source.get(name, 1) for name in ("num_identities", "images_per_identity")]
    if not all(isinstance(size, int) and size <= MAX_SYNTHETIC for size in sizes):
        note("no thumbnails of synthetic faces: too many to open for a report")
        return True
    return False


def _lab_section(
    inputs: Sequence[ReportInput], trust_code: bool, note: Note, progress: Progress | None
) -> Section:
    title = "Margin lab"
    losses: dict[str, Any] = {}
    for each in inputs:
        try:
            losses |= _losses_of(each, trust_code)
        except ValueError as error:
            note(f"no margin lab for {each.name}: {error}")
    if not losses:
        return Section(title)
    try:
        tables = lab_tables(dict(list(losses.items())[:MAX_LAB_LOSSES]), progress)
    except ValueError as error:
        note(f"no margin lab: {error}")
        return Section(title)
    chosen = [name for name in losses if name in tables["losses"]][:4]
    return Section(title, [Lab({**tables, "chosen": chosen}, lab_charts())])


def _losses_of(each: ReportInput, trust_code: bool) -> dict[str, Any]:
    """The losses of a run or a study by name, created while code from files is refused."""
    specs: dict[str, Any] = {}
    if each.run is not None:
        block = each.run.read_yaml().get("loss")
        if not isinstance(block, Mapping):
            raise ValueError(f"{each.run.config}: loss is no block of settings")
        specs[clean_text(str(block.get("kind", "loss")))] = block
    for result in _study_results(each):
        if result.name == result.settings.get("condition", result.name):
            specs |= study_losses(result)
    source = each.run.config if each.run is not None else each.name
    with names_from_file(source, trust_code):
        return {name: create_loss(spec) for name, spec in specs.items()}


def _settings_section(each: ReportInput) -> Section:
    """The settings as they are read, not as they are written: the file may be a link to others."""
    if each.run is not None:
        settings: Any = each.run.read_yaml()
    elif each.study is not None:
        path = each.study.settings
        settings = read_yaml(read_bytes(path).decode("utf-8", "replace"), str(path))
    else:
        return Section("Settings")
    if not isinstance(settings, Mapping):
        return Section("Settings")
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    text = clean_text(text, MAX_SETTINGS)
    return Section(f"Settings: {each.name}", [TextBlock(f"All settings of {each.name}", text)])


def _unique(sections: Sequence[Section]) -> list[Section]:
    """Sections with unlike titles, because titles are addresses within the page."""
    counts: dict[str, int] = {}
    unique = []
    for section in sections:
        if section.blocks:
            name = anchor(section.title)
            number = counts[name] = counts.get(name, 0) + 1
            title = section.title if number == 1 else f"{section.title} ({number})"
            unique.append(replace(section, title=title))
    return unique


def lab_page(losses: Mapping[str, Any] | None, tables: Mapping[str, Any]) -> Page:
    """The margin lab as a page of its own."""
    chosen = {} if losses is None else {"chosen": list(losses)[:4]}
    lab = Lab({**tables, **chosen}, lab_charts())
    subtitle = "What each loss does to a sample, as its own code computes it"
    return Page("Margin lab", subtitle, [Section("Losses", [lab])])
