"""The results of a study: who took part, what was measured, what was tested, what went wrong."""

from collections.abc import Iterable, Mapping
from typing import Any

from rnow.medbrowse.layout import at, facts, many, section, table, word

Module = Mapping[str, Any]


def results(module: Module) -> str:
    """Return the sections of `resultsSection`, "" for a study without results."""
    parts = (
        _flow(at(module, "participantFlowModule")),
        _baseline(at(module, "baselineCharacteristicsModule")),
        *(_outcome(each) for each in many(at(module, "outcomeMeasuresModule"), "outcomeMeasures")),
        _adverse_events(at(module, "adverseEventsModule")),
    )
    return "\n\n".join(part for part in parts if part)


def _flow(module: Module) -> str:
    groups = many(module, "groups")
    rows = []
    for period in many(module, "periods"):
        for milestone in many(period, "milestones"):
            numbers = {
                each.get("groupId"): each.get("numSubjects")
                for each in many(milestone, "achievements")
            }
            name = f"{period.get('title', '')}: {word(milestone.get('type'))}"
            rows.append((name, *(numbers.get(group["id"]) for group in groups)))
    return section("Participant Flow", table(("Milestone", *_titles(groups)), rows), level=3)


def _baseline(module: Module) -> str:
    groups = many(module, "groups")
    rows = [
        row
        for measure in many(module, "measures")
        for row in _measured(measure, groups, name=str(measure.get("title", "")))
    ]
    return section("Baseline Characteristics", table(("Measure", *_titles(groups)), rows), level=3)


def _outcome(outcome: Module) -> str:
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
            *_by_group(many(denominator, "counts"), groups),
        )
        for denominator in many(outcome, "denoms")
    ]
    measured = _measured(outcome, groups, name=_unit(outcome))
    values = table(("", *_titles(groups)), [*denominators, *measured])
    analyses = "\n".join(_analysis(each) for each in many(outcome, "analyses"))
    title = f"{word(outcome.get('type'))} outcome: {outcome.get('title', '')}"
    return section(title, about, values, analyses, level=3)


def _unit(measure: Module) -> str:
    """Return "Mean (Standard deviation), Months"."""
    kind, spread = word(measure.get("paramType")), word(measure.get("dispersionType"))
    statistic = f"{kind} ({spread})" if spread and spread != "Not applicable" else kind
    return ", ".join(part for part in (statistic, measure.get("unitOfMeasure")) if part)


def _measured(measure: Module, groups: Iterable[Module], *, name: str) -> list[tuple[object, ...]]:
    """Return a row for each category, with the value of each group."""
    groups = tuple(groups)
    rows: list[tuple[object, ...]] = []
    for each in many(measure, "classes"):
        for category in many(each, "categories"):
            parts = (name, each.get("title"), category.get("title"))
            label = ": ".join(str(part) for part in parts if part)
            rows.append((label, *_by_group(many(category, "measurements"), groups)))
    return rows


def _by_group(values: Iterable[Module], groups: Iterable[Module]) -> list[str]:
    found = {value.get("groupId"): _value(value) for value in values}
    return [found.get(group["id"], "") for group in groups]


def _value(value: Module) -> str:
    text = str(value.get("value", ""))
    if value.get("lowerLimit") or value.get("upperLimit"):
        return f"{text} ({value.get('lowerLimit', '')} to {value.get('upperLimit', '')})"
    return f"{text} ({value['spread']})" if value.get("spread") else text


def _analysis(analysis: Module) -> str:
    low, high = analysis.get("ciLowerLimit"), analysis.get("ciUpperLimit")
    interval = f"{analysis.get('ciPctValue', '')} % CI {low} to {high}" if low or high else ""
    value = analysis.get("paramValue")
    estimate = f"{analysis.get('paramType', '')} {value}" if value else ""
    p_value = f"p {analysis['pValue']}" if analysis.get("pValue") else ""
    method = analysis.get("statisticalMethod")
    parts = (method, p_value, estimate, interval, analysis.get("groupDescription"))
    return "- Analysis: " + "; ".join(" ".join(str(part).split()) for part in parts if part)


def _adverse_events(module: Module) -> str:
    groups = many(module, "eventGroups")
    kinds = (("Deaths", "deaths"), ("Serious", "serious"), ("Other", "other"))
    totals = table(
        ("Adverse Events", *_titles(groups)),
        (
            (
                title,
                *(
                    f"{group.get(f'{key}NumAffected', '')} of {group.get(f'{key}NumAtRisk', '')}"
                    for group in groups
                ),
            )
            for title, key in kinds
            if any(f"{key}NumAtRisk" in group for group in groups)
        ),
    )
    serious = table(
        ("Serious Event", *_titles(groups)),
        (
            (event.get("term"), *_affected(many(event, "stats"), groups))
            for event in many(module, "seriousEvents")
        ),
    )
    return section("Adverse Events", totals, serious, level=3)


def _affected(stats: Iterable[Module], groups: Iterable[Module]) -> list[str]:
    found = {
        each.get("groupId"): f"{each.get('numAffected', '')} of {each.get('numAtRisk', '')}"
        for each in stats
    }
    return [found.get(group["id"], "") for group in groups]


def _titles(groups: Iterable[Module]) -> list[str]:
    return [str(group.get("title", "")) for group in groups]
