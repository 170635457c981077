"""ClinicalTrials.gov: the page of a study, from version 2 of its interface.

What stands on the page's tabs stands here one under the other: overview, plan, criteria, people and
places, publications, results. Names of enumerations are written as words, dates as they come.
"""

import json
import re
from collections.abc import Iterable

from yarl import URL

from rnow.browser import RawPage, adapter, page_finder
from rnow.medbrowse.clinicaltrials_results import results
from rnow.medbrowse.layout import Record, at, facts, joined, many, section, table, word, words

_API = URL("https://clinicaltrials.gov/api/v2/studies/")
_HOSTS = ("clinicaltrials.gov", "www.clinicaltrials.gov")
_NUMBER = re.compile(r"\bNCT\d{8}\b")
_PATH = re.compile(r"/(?:study|show|ct2/show(?:/results)?|ct2/results/show)/(NCT\d{8})/?", re.I)


def _locate(url: URL) -> URL | None:
    found = _PATH.fullmatch(url.path)
    return _API / found[1].upper() if found else None


@page_finder
def studies(text: str) -> list[str]:
    """Return the page of each study whose number stands in a text.

    >>> studies("Who runs NCT90000001, and what is XNCT900000012?")
    ['https://clinicaltrials.gov/study/NCT90000001']
    """
    numbers = dict.fromkeys(_NUMBER.findall(text))
    return [f"https://clinicaltrials.gov/study/{number}" for number in numbers]


@adapter(*_HOSTS, data=_locate)
def clinicaltrials(page: RawPage) -> str:
    """Return the page of the study that /api/v2/studies/NCT… answered with."""
    study = json.loads(page.body)
    protocol = study["protocolSection"]
    identification = protocol["identificationModule"]
    parts = (
        _head(protocol),
        section("Study Overview", _overview(protocol), _description(protocol)),
        section("Study Plan", _design(at(protocol, "designModule")), _arms(protocol)),
        section("Outcome Measures", *_outcomes(at(protocol, "outcomesModule"))),
        section("Participation Criteria", _criteria(at(protocol, "eligibilityModule"))),
        section("Contacts and Locations", _people(protocol), _places(protocol)),
        section("Publications", _publications(at(protocol, "referencesModule"))),
        section("Results", results(at(study, "resultsSection"))),
    )
    title = identification.get("briefTitle") or identification["nctId"]
    return section(str(title), *parts, level=1)


def _head(protocol: Record) -> str:
    identification = at(protocol, "identificationModule")
    status = at(protocol, "statusModule")
    sponsors = at(protocol, "sponsorCollaboratorsModule")
    party = at(sponsors, "responsibleParty")
    return facts(
        {
            "ClinicalTrials.gov ID": identification.get("nctId"),
            "Sponsor": at(sponsors, "leadSponsor").get("name"),
            "Collaborators": ", ".join(
                str(each.get("name")) for each in many(sponsors, "collaborators")
            ),
            "Responsible Party": party.get("investigatorFullName") or word(party.get("type")),
            "Overall Status": word(status.get("overallStatus")),
            "Why Stopped": status.get("whyStopped"),
            "First Posted": _date(status, "studyFirstPostDateStruct"),
            "Results Posted": _date(status, "resultsFirstPostDateStruct"),
            "Last Update Posted": _date(status, "lastUpdatePostDateStruct"),
        }
    )


def _overview(protocol: Record) -> str:
    identification = at(protocol, "identificationModule")
    status, design = at(protocol, "statusModule"), at(protocol, "designModule")
    conditions = at(protocol, "conditionsModule")
    enrollment = at(design, "enrollmentInfo")
    ids = [at(identification, "orgStudyIdInfo"), *many(identification, "secondaryIdInfos")]
    return facts(
        {
            "Official Title": identification.get("officialTitle"),
            "Acronym": identification.get("acronym"),
            "Other Study ID Numbers": ", ".join(str(each["id"]) for each in ids if each.get("id")),
            "Conditions": ", ".join(map(str, many(conditions, "conditions"))),
            "Keywords": ", ".join(map(str, many(conditions, "keywords"))),
            "Study Type": word(design.get("studyType")),
            "Phase": words(many(design, "phases"), " / "),
            "Enrollment": _with_type(enrollment.get("count"), enrollment),
            "Study Start": _date(status, "startDateStruct"),
            "Primary Completion": _date(status, "primaryCompletionDateStruct"),
            "Study Completion": _date(status, "completionDateStruct"),
        }
    )


def _description(protocol: Record) -> str:
    description = at(protocol, "descriptionModule")
    titles = {"Brief Summary": "briefSummary", "Detailed Description": "detailedDescription"}
    texts = {title: str(description.get(key) or "").strip() for title, key in titles.items()}
    return joined(*(section(title, text, level=3) for title, text in texts.items()))


def _design(design: Record) -> str:
    info = at(design, "designInfo")
    masking = at(info, "maskingInfo")
    masked = words(many(masking, "whoMasked"))
    return facts(
        {
            "Primary Purpose": word(info.get("primaryPurpose")),
            "Allocation": word(info.get("allocation")),
            "Interventional Model": word(info.get("interventionModel")),
            "Model Description": info.get("interventionModelDescription"),
            "Observational Model": word(info.get("observationalModel")),
            "Time Perspective": word(info.get("timePerspective")),
            "Masking": word(masking.get("masking")) + (f" ({masked})" if masked else ""),
            "Masking Description": masking.get("maskingDescription"),
        }
    )


def _arms(protocol: Record) -> str:
    module = at(protocol, "armsInterventionsModule")
    arms = table(
        ("Arm", "Type", "Description", "Interventions"),
        (
            (
                arm.get("label"),
                word(arm.get("type")),
                arm.get("description"),
                ", ".join(map(str, many(arm, "interventionNames"))),
            )
            for arm in many(module, "armGroups")
        ),
    )
    interventions = table(
        ("Intervention", "Type", "Description", "Other Names", "Arms"),
        (
            (
                each.get("name"),
                word(each.get("type")),
                each.get("description"),
                ", ".join(map(str, many(each, "otherNames"))),
                ", ".join(map(str, many(each, "armGroupLabels"))),
            )
            for each in many(module, "interventions")
        ),
    )
    return joined(section("Arms", arms, level=3), section("Interventions", interventions, level=3))


def _outcomes(module: Record) -> Iterable[str]:
    for kind in ("Primary", "Secondary", "Other"):
        rows = (
            (each.get("measure"), each.get("description"), each.get("timeFrame"))
            for each in many(module, f"{kind.lower()}Outcomes")
        )
        yield section(
            f"{kind} Outcomes", table(("Measure", "Description", "Time Frame"), rows), level=3
        )


def _criteria(module: Record) -> str:
    criteria = str(module.get("eligibilityCriteria") or "").strip()
    about = facts(
        {
            "Ages Eligible": " to ".join(
                str(module[name]) for name in ("minimumAge", "maximumAge") if module.get(name)
            ),
            "Sexes Eligible": word(module.get("sex")),
            "Accepts Healthy Volunteers": word(module.get("healthyVolunteers")),
            "Study Population": module.get("studyPopulation"),
        }
    )
    return joined(about, criteria)


def _people(protocol: Record) -> str:
    officials = many(at(protocol, "contactsLocationsModule"), "overallOfficials")
    return table(
        ("Official", "Role", "Affiliation"),
        ((each.get("name"), word(each.get("role")), each.get("affiliation")) for each in officials),
    )


def _places(protocol: Record) -> str:
    places = many(at(protocol, "contactsLocationsModule"), "locations")
    names = ("facility", "city", "state", "country")
    return "\n".join(
        "- " + ", ".join(str(place[name]) for name in names if place.get(name)) for place in places
    )


def _publications(module: Record) -> str:
    lines = []
    for each in many(module, "references"):
        pmid = f" PMID {each['pmid']}" if each.get("pmid") else ""
        lines.append(f"- {' '.join(str(each.get('citation') or '').split())}{pmid}")
    return "\n".join(lines)


def _date(status: Record, name: str) -> str:
    struct = at(status, name)
    return _with_type(struct.get("date"), struct)


def _with_type(value: object, struct: Record) -> str:
    """Return "2024-01-15 (Actual)", "" for no value."""
    if value is None:
        return ""
    return f"{value} ({word(struct['type'])})" if struct.get("type") else str(value)
