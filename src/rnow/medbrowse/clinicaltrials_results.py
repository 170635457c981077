"""The results of a study: who took part, what was measured, what was tested, what went wrong."""

from collections.abc import Callable, Iterable

from rnow.medbrowse.layout import Record, at, facts, joined, many, section, table, word


def results(module: Record) -> str:
    """Return the sections of `resultsSection`, "" for a study without results."""
    return joined(
        _flow(at(module, "participantFlowModule")),
        _baseline(at(module, "baselineCharacteristicsModule")),
        *map(_outcome, many(at(module, "outcomeMeasuresModule"), "outcomeMeasures")),
        _adverse_events(at(module, "adverseEventsModule")),
    )


def _flow(module: Record) -> str:
    groups = many(module, "groups")
    rows = [
        (
            f"{period.get('title', '')}: {word(milestone.get('type'))}",
            *_by_group(many(milestone, "achievements"), groups, _started),
        )
        for period in many(module, "periods")
        for milestone in many(period, "milestones")
    ]
    return section("Participant Flow", table(("Milestone", *_titles(groups)), rows), level=3)


def _baseline(module: Record) -> str:
    groups = many(module, "groups")
    rows = [
        row
        for measure in many(module, "measures")
        for row in _measured(measure, groups, name=str(measure.get("title", "")))
    ]
    return section("Baseline Characteristics", table(("Measure", *_titles(groups)), rows), level=3)


def _outcome(outcome: Record) -> str:
    groups = many(outcome, "groups")
    about = facts(
        {
            "Description": outcome.get("description"),
            "Time Frame": outcome.get("timeFrame"),
            "Population": outcome.get("populationDescription"),
        }
    )
    denominators = [
        (
            f"{denominator.get('units', '')} analyzed",
            *_by_group(many(denominator, "counts"), groups, _value),
        )
        for denominator in many(outcome, "denoms")
    ]
    measured = _measured(outcome, groups, name=_unit(outcome))
    values = table(("", *_titles(groups)), [*denominators, *measured])
    analyses = "\n".join(_analysis(each) for each in many(outcome, "analyses"))
    title = f"{word(outcome.get('type'))} outcome: {outcome.get('title', '')}"
    return section(title, about, values, analyses, level=3)


def _unit(measure: Record) -> str:
    """Return "Mean (Standard deviation), Months"."""
    kind, spread = word(measure.get("paramType")), word(measure.get("dispersionType"))
    statistic = f"{kind} ({spread})" if spread and spread != "Not applicable" else kind
    return ", ".join(part for part in (statistic, measure.get("unitOfMeasure")) if part)


def _measured(measure: Record, groups: Iterable[Record], *, name: str) -> list[tuple[object, ...]]:
    """Return a row for each category, with the value of each group."""
    groups = tuple(groups)
    rows: list[tuple[object, ...]] = []
    for each in many(measure, "classes"):
        for category in many(each, "categories"):
            parts = (name, each.get("title"), category.get("title"))
            label = ": ".join(str(part) for part in parts if part)
            rows.append((label, *_by_group(many(category, "measurements"), groups, _value)))
    return rows


def _by_group(
    values: Iterable[Record], groups: Iterable[Record], show: Callable[[Record], object]
) -> list[object]:
    """Return a cell for each group, from the value that names it."""
    found = {value.get("groupId"): show(value) for value in values}
    return [found.get(group["id"]) for group in groups]


def _started(achievement: Record) -> object:
    return achievement.get("numSubjects")


def _value(value: Record) -> str:
    text = str(value.get("value", ""))
    if value.get("lowerLimit") or value.get("upperLimit"):
        return f"{text} ({value.get('lowerLimit', '')} to {value.get('upperLimit', '')})"
    return f"{text} ({value['spread']})" if value.get("spread") else text


def _analysis(analysis: Record) -> str:
    low, high = analysis.get("ciLowerLimit"), analysis.get("ciUpperLimit")
    interval = f"{analysis.get('ciPctValue', '')} % CI {low} to {high}" if low or high else ""
    value = analysis.get("paramValue")
    estimate = f"{analysis.get('paramType', '')} {value}" if value else ""
    p_value = f"p {analysis['pValue']}" if analysis.get("pValue") else ""
    method = analysis.get("statisticalMethod")
    parts = (method, p_value, estimate, interval, analysis.get("groupDescription"))
    return "- Analysis: " + "; ".join(" ".join(str(part).split()) for part in parts if part)


def _adverse_events(module: Record) -> str:
    groups = many(module, "eventGroups")
    kinds = {"Deaths": "deathsNum", "Serious": "seriousNum", "Other": "otherNum"}
    totals = table(
        ("Adverse Events", *_titles(groups)),
        (
            (title, *(_affected(group, kind) for group in groups))
            for title, kind in kinds.items()
            if any(f"{kind}AtRisk" in group for group in groups)
        ),
    )
    serious = table(
        ("Serious Event", *_titles(groups)),
        (
            (event.get("term"), *_by_group(many(event, "stats"), groups, _affected))
            for event in many(module, "seriousEvents")
        ),
    )
    return section("Adverse Events", totals, serious, level=3)


def _affected(numbers: Record, kind: str = "num") -> str:
    """Return "3 of 40": `kind` is what the keys of the two numbers begin with."""
    return f"{numbers.get(f'{kind}Affected', '')} of {numbers.get(f'{kind}AtRisk', '')}"


def _titles(groups: Iterable[Record]) -> list[str]:
    return [str(group.get("title", "")) for group in groups]
