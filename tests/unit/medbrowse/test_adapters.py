"""Pages made of data: whole texts, of answers in the published form with invented content."""

import io
import json
import zipfile
from typing import Any

import pytest
from yarl import URL

from rnow.browser.adapters import ADAPTERS, render
from rnow.browser.source import RawPage
from rnow.medbrowse import clinicaltrials, drugs_at_fda, orange_book

DAF = "https://www.accessdata.fda.gov/scripts/cder/daf/index.cfm"
OB = "https://www.accessdata.fda.gov/scripts/cder/ob"


def page(url: str, body: bytes | object, source: str = "http") -> RawPage:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RawPage(
        url=URL(url),
        status=200,
        content_type="application/json",
        charset=None,
        body=data,
        source=source,
    )


STUDY: dict[str, Any] = {
    "protocolSection": {
        "identificationModule": {
            "nctId": "NCT90000001",
            "orgStudyIdInfo": {"id": "VEL-301"},
            "secondaryIdInfos": [{"id": "2019-000001-01", "type": "EUDRACT_NUMBER"}],
            "briefTitle": "Velora Against Duxima",
            "officialTitle": "A Randomized Study of Velora\nVersus Duxima",
            "acronym": "VELDUX",
        },
        "statusModule": {
            "overallStatus": "TERMINATED",
            "whyStopped": "Low enrollment",
            "startDateStruct": {"date": "2019-05-01", "type": "ACTUAL"},
            "primaryCompletionDateStruct": {"date": "2021-03", "type": "ACTUAL"},
            "completionDateStruct": {"date": "2027-01", "type": "ESTIMATED"},
            "studyFirstPostDateStruct": {"date": "2019-04-02", "type": "ACTUAL"},
        },
        "sponsorCollaboratorsModule": {
            "responsibleParty": {"type": "SPONSOR"},
            "leadSponsor": {"name": "Example Pharma Inc", "class": "INDUSTRY"},
            "collaborators": [{"name": "Example University"}],
        },
        "descriptionModule": {"briefSummary": "Which is better?\n\n* one\n* two"},
        "conditionsModule": {"conditions": ["Examplosis"], "keywords": ["rare"]},
        "designModule": {
            "studyType": "INTERVENTIONAL",
            "phases": ["PHASE2", "PHASE3"],
            "designInfo": {
                "allocation": "RANDOMIZED",
                "interventionModel": "PARALLEL",
                "primaryPurpose": "TREATMENT",
                "maskingInfo": {"masking": "DOUBLE", "whoMasked": ["PARTICIPANT", "INVESTIGATOR"]},
            },
            "enrollmentInfo": {"count": 40, "type": "ACTUAL"},
        },
        "armsInterventionsModule": {
            "armGroups": [
                {
                    "label": "A | new",
                    "type": "EXPERIMENTAL",
                    "description": "daily",
                    "interventionNames": ["Drug: Velora"],
                }
            ],
            "interventions": [
                {
                    "type": "DRUG",
                    "name": "Velora",
                    "description": "10 mg",
                    "armGroupLabels": ["A | new"],
                    "otherNames": ["VEL"],
                }
            ],
        },
        "outcomesModule": {
            "primaryOutcomes": [{"measure": "Survival", "timeFrame": "2 years"}],
            "secondaryOutcomes": [{"measure": "Pain", "description": "scale", "timeFrame": "1 y"}],
        },
        "eligibilityModule": {
            "eligibilityCriteria": "Inclusion:\n\n* adults",
            "healthyVolunteers": False,
            "sex": "ALL",
            "minimumAge": "18 Years",
        },
        "contactsLocationsModule": {
            "overallOfficials": [
                {"name": "A. Doe", "affiliation": "Example U", "role": "PRINCIPAL_INVESTIGATOR"}
            ],
            "locations": [{"facility": "Clinic", "city": "Bern", "country": "Switzerland"}],
        },
        "referencesModule": {"references": [{"pmid": "1234", "citation": "Doe A. Velora. 2022."}]},
    },
    "resultsSection": {
        "participantFlowModule": {
            "groups": [{"id": "FG000", "title": "Velora"}, {"id": "FG001", "title": "Duxima"}],
            "periods": [
                {
                    "title": "Overall Study",
                    "milestones": [
                        {
                            "type": "STARTED",
                            "achievements": [
                                {"groupId": "FG000", "numSubjects": "21"},
                                {"groupId": "FG001", "numSubjects": "19"},
                            ],
                        }
                    ],
                }
            ],
        },
        "baselineCharacteristicsModule": {
            "groups": [{"id": "BG000", "title": "Velora"}],
            "measures": [
                {
                    "title": "Age",
                    "classes": [
                        {
                            "categories": [
                                {
                                    "measurements": [
                                        {"groupId": "BG000", "value": "61.5", "spread": "8.2"}
                                    ]
                                }
                            ]
                        }
                    ],
                }
            ],
        },
        "outcomeMeasuresModule": {
            "outcomeMeasures": [
                {
                    "type": "PRIMARY",
                    "title": "Survival",
                    "timeFrame": "2 years",
                    "paramType": "MEDIAN",
                    "dispersionType": "95% Confidence Interval",
                    "unitOfMeasure": "Months",
                    "groups": [
                        {"id": "OG000", "title": "Velora"},
                        {"id": "OG001", "title": "Duxima"},
                    ],
                    "denoms": [
                        {
                            "units": "Participants",
                            "counts": [
                                {"groupId": "OG000", "value": "21"},
                                {"groupId": "OG001", "value": "19"},
                            ],
                        }
                    ],
                    "classes": [
                        {
                            "categories": [
                                {
                                    "measurements": [
                                        {
                                            "groupId": "OG000",
                                            "value": "20.1",
                                            "lowerLimit": "18.0",
                                            "upperLimit": "22.2",
                                        },
                                        {"groupId": "OG001", "value": "15.0"},
                                    ]
                                }
                            ]
                        }
                    ],
                    "analyses": [
                        {
                            "paramType": "Hazard Ratio (HR)",
                            "paramValue": "0.62",
                            "statisticalMethod": "Log Rank",
                            "pValue": "<0.001",
                            "ciPctValue": "95",
                            "ciLowerLimit": "0.5",
                            "ciUpperLimit": "0.8",
                        }
                    ],
                }
            ]
        },
        "adverseEventsModule": {
            "eventGroups": [
                {
                    "id": "EG000",
                    "title": "Velora",
                    "seriousNumAffected": 2,
                    "seriousNumAtRisk": 21,
                }
            ],
            "seriousEvents": [
                {
                    "term": "Anaemia",
                    "stats": [{"groupId": "EG000", "numAffected": 1, "numAtRisk": 21}],
                }
            ],
        },
    },
    "hasResults": True,
}

STUDY_PAGE = """\
# Velora Against Duxima

ClinicalTrials.gov ID: NCT90000001
Sponsor: Example Pharma Inc
Collaborators: Example University
Responsible Party: Sponsor
Overall Status: Terminated
Why Stopped: Low enrollment
First Posted: 2019-04-02 (Actual)

## Study Overview

Official Title: A Randomized Study of Velora Versus Duxima
Acronym: VELDUX
Other Study ID Numbers: VEL-301, 2019-000001-01
Conditions: Examplosis
Keywords: rare
Study Type: Interventional
Phase: Phase 2 / Phase 3
Enrollment: 40 (Actual)
Study Start: 2019-05-01 (Actual)
Primary Completion: 2021-03 (Actual)
Study Completion: 2027-01 (Estimated)

### Brief Summary

Which is better?

* one
* two

## Study Plan

Primary Purpose: Treatment
Allocation: Randomized
Interventional Model: Parallel
Masking: Double (Participant, Investigator)

### Arms

| Arm | Type | Description | Interventions |
| --- | --- | --- | --- |
| A / new | Experimental | daily | Drug: Velora |

### Interventions

| Intervention | Type | Description | Other Names | Arms |
| --- | --- | --- | --- | --- |
| Velora | Drug | 10 mg | VEL | A / new |

## Outcome Measures

### Primary Outcomes

| Measure | Description | Time Frame |
| --- | --- | --- |
| Survival |  | 2 years |

### Secondary Outcomes

| Measure | Description | Time Frame |
| --- | --- | --- |
| Pain | scale | 1 y |

## Participation Criteria

Ages Eligible: 18 Years
Sexes Eligible: All
Accepts Healthy Volunteers: No

Inclusion:

* adults

## Contacts and Locations

| Official | Role | Affiliation |
| --- | --- | --- |
| A. Doe | Principal investigator | Example U |

- Clinic, Bern, Switzerland

## Publications

- Doe A. Velora. 2022. PMID 1234

## Results

### Participant Flow

| Milestone | Velora | Duxima |
| --- | --- | --- |
| Overall Study: Started | 21 | 19 |

### Baseline Characteristics

| Measure | Velora |
| --- | --- |
| Age | 61.5 (8.2) |

### Primary outcome: Survival

Time Frame: 2 years

|  | Velora | Duxima |
| --- | --- | --- |
| Participants analyzed | 21 | 19 |
| Median (95% confidence interval), Months | 20.1 (18.0 to 22.2) | 15.0 |

- Analysis: Log Rank; p <0.001; Hazard Ratio (HR) 0.62; 95 % CI 0.5 to 0.8

### Adverse Events

| Adverse Events | Velora |
| --- | --- |
| Serious | 2 of 21 |

| Serious Event | Velora |
| --- | --- |
| Anaemia | 1 of 21 |"""


def test_a_study_reads_as_its_page_does() -> None:
    assert clinicaltrials.clinicaltrials(
        page("https://clinicaltrials.gov/study/NCT90000001", STUDY)
    ) == (STUDY_PAGE)


def test_a_study_of_which_little_is_known_is_a_short_page() -> None:
    study = {"protocolSection": {"identificationModule": {"nctId": "NCT90000002"}}}
    assert clinicaltrials.clinicaltrials(
        page("https://clinicaltrials.gov/study/NCT90000002", study)
    ) == ("# NCT90000002\n\nClinicalTrials.gov ID: NCT90000002")


DRUGS: dict[str, Any] = {
    "meta": {"results": {"skip": 0, "limit": 1, "total": 3}},
    "results": [
        {
            "application_number": "NDA900001",
            "sponsor_name": "EXAMPLE PHARMA",
            "products": [
                {
                    "product_number": "001",
                    "brand_name": "VELORA",
                    "active_ingredients": [
                        {"name": "VELORANIB", "strength": "10MG"},
                        {"name": "OTHER", "strength": "5MG"},
                    ],
                    "reference_drug": "Yes",
                    "reference_standard": "No",
                    "dosage_form": "TABLET",
                    "route": "ORAL",
                    "marketing_status": "Prescription",
                    "te_code": "AB",
                }
            ],
            "submissions": [
                {
                    "submission_type": "ORIG",
                    "submission_number": "1",
                    "submission_status": "AP",
                    "submission_status_date": "20121228",
                    "submission_class_code_description": "Type 1 - New Molecular Entity",
                    "review_priority": "PRIORITY",
                },
                {
                    "submission_type": "SUPPL",
                    "submission_number": "4",
                    "submission_status": "AP",
                    "submission_status_date": "20200131",
                    "application_docs": [
                        {"type": "Label", "url": "https://www.accessdata.fda.gov/label.pdf"}
                    ],
                },
            ],
        }
    ],
}


def test_an_application_reads_as_its_page_does() -> None:
    assert drugs_at_fda.drugs_at_fda(
        page(f"{DAF}?event=overview.process&ApplNo=900001", DRUGS)
    ) == (
        "# Drugs@FDA: NDA 900001\n\n"
        "Company: EXAMPLE PHARMA\n\n"
        "## Products on NDA 900001\n\n"
        "| Product | Drug Name | Active Ingredients | Strength | Dosage Form/Route "
        "| Marketing Status | TE Code | RLD | RS |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| 001 | VELORA | VELORANIB; OTHER | 10MG; 5MG | TABLET;ORAL | Prescription | AB | Yes "
        "| No |\n\n"
        "## Approval Dates and History for NDA 900001\n\n"
        "| Action Date | Submission | Action Type | Classification | Review | Documents |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| 01/31/2020 | Supplement-4 | Approval |  |  "
        "| [Label](https://www.accessdata.fda.gov/label.pdf) |\n"
        "| 12/28/2012 | Original-1 | Approval | Type 1 - New Molecular Entity | PRIORITY |  |\n\n"
        "2 more applications match; ask for them by their number."
    )


def book() -> bytes:
    files = {
        "products.txt": (
            "Ingredient~DF;Route~Trade_Name~Applicant~Strength~Appl_Type~Appl_No~Product_No~TE_Code"
            "~Approval_Date~RLD~RS~Type~Applicant_Full_Name\n"
            "VELORANIB~TABLET;ORAL~VELORA~EXAMPLE~10MG~N~900001~001~~Dec 28, 2012~Yes~Yes~RX"
            "~EXAMPLE PHARMA INC\n"
            "VELORANIB~TABLET;ORAL~VELORA~EXAMPLE~20MG~N~900001~002~~Dec 28, 2012~Yes~No~DISCN"
            "~EXAMPLE PHARMA INC\n"
            "OTHER~TABLET;ORAL~OTHERIN~GEN~5MG~A~900002~001~AB~Jan 1, 1982~No~No~OTC~GEN CO\n"
        ),
        "patent.txt": (
            "Appl_Type~Appl_No~Product_No~Patent_No~Patent_Expire_Date_Text~Drug_Substance_Flag"
            "~Drug_Product_Flag~Patent_Use_Code~Delist_Flag~Submission_Date\n"
            "N~900001~001~9999999~Jun 1, 2034~Y~~U-123~~Feb 3, 2020\n"
        ),
        "exclusivity.txt": (
            "Appl_Type~Appl_No~Product_No~Exclusivity_Code~Exclusivity_Date\n"
            "N~900001~001~NCE~Dec 28, 2027\n"
        ),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for name, text in files.items():
            members.writestr(name, text)
    return archive.getvalue()


def test_the_products_of_an_application_stand_one_under_the_other() -> None:
    text = orange_book.orange_book(
        page(f"{OB}/results_product.cfm?Appl_Type=N&Appl_No=900001", book())
    )
    first, second = text.split("\n\n## ")[1:]
    assert text.startswith("# Orange Book: Product Details for Application 900001\n\n## Product 00")
    assert first == (
        "Product 001: VELORA\n\n"
        "Active Ingredient: VELORANIB\n"
        "Proprietary Name: VELORA\n"
        "Dosage Form; Route of Administration: TABLET; ORAL\n"
        "Strength: 10MG\n"
        "Reference Listed Drug: Yes\n"
        "Reference Standard: Yes\n"
        "Application Number: N900001\n"
        "Product Number: 001\n"
        "Approval Date: Dec 28, 2012\n"
        "Applicant Holder Full Name: EXAMPLE PHARMA INC\n"
        "Marketing Status: Prescription\n\n"
        "[Patent and Exclusivity Information](/scripts/cder/ob/patent_info.cfm?Product_No=001"
        "&Appl_No=900001&Appl_type=N)"
    )
    assert "Marketing Status: Discontinued" in second


def test_patents_and_exclusivity_of_a_product_are_those_of_that_product() -> None:
    url = f"{OB}/patent_info.cfm?Product_No=001&Appl_No=900001&Appl_type=N"
    assert orange_book.orange_book(page(url, book())) == (
        "# Orange Book: Patent and Exclusivity for N900001\n\n"
        "Product 001: VELORA (VELORANIB) TABLET;ORAL 10MG\n\n"
        "## Patent Data\n\n"
        "| Product No | Patent No | Patent Expiration | Drug Substance | Drug Product "
        "| Patent Use Code | Delist Requested | Submission Date |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| 001 | 9999999 | Jun 1, 2034 | Y |  | U-123 |  | Feb 3, 2020 |\n\n"
        "## Exclusivity Data\n\n"
        "| Product No | Exclusivity Code | Exclusivity Expiration |\n"
        "| --- | --- | --- |\n"
        "| 001 | NCE | Dec 28, 2027 |"
    )
    assert orange_book.orange_book(page(url.replace("=001", "=2"), book())) == (
        "# Orange Book: Patent and Exclusivity for N900001\n\n"
        "Product 002: VELORA (VELORANIB) TABLET;ORAL 20MG\n\n"
        "## Patent Data\n\nThere are no unexpired patents for this product.\n\n"
        "## Exclusivity Data\n\nThere is no unexpired exclusivity for this product."
    )


def test_a_search_finds_names_and_ingredients() -> None:
    head = (
        "| Status | Active Ingredient | Proprietary Name | Application | Dosage Form; Route "
        "| Strength | Applicant Holder |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    assert orange_book.orange_book(page(f"{OB}/search_product.cfm?drugname=otherin", book())) == (
        f"# Orange Book: Search for OTHERIN\n\n{head}"
        "| Over-the-counter | OTHER | OTHERIN | [A900002](/scripts/cder/ob/results_product.cfm"
        "?Appl_Type=A&Appl_No=900002) | TABLET;ORAL | 5MG | GEN CO |"
    )
    assert orange_book.orange_book(page(f"{OB}/search_product.cfm?drugname=none", book())) == (
        "# Orange Book: Search for NONE\n\nNo matching records found."
    )
    assert orange_book.orange_book(page(f"{OB}/results_product.cfm?Appl_No=7", book())) == (
        "# Orange Book: Product Details for Application 000007\n\nNo matching records found."
    )


@pytest.mark.parametrize(
    ("url", "place"),
    [
        (
            "https://clinicaltrials.gov/study/nct90000001?tab=results",
            "https://clinicaltrials.gov/api/v2/studies/NCT90000001",
        ),
        (
            "http://www.clinicaltrials.gov/ct2/show/NCT90000001",
            "https://clinicaltrials.gov/api/v2/studies/NCT90000001",
        ),
        ("https://clinicaltrials.gov/search?term=NCT90000001", None),
        ("https://clinicaltrials.gov.evil.test/study/NCT90000001", None),
        (
            f"{DAF}?event=overview.process&ApplNo=1234",
            "https://api.fda.gov/drug/drugsfda.json?search=application_number:%22NDA001234%22+"
            "application_number:%22ANDA001234%22+application_number:%22BLA001234%22&limit=3",
        ),
        (
            f'{DAF}?event=BasicSearch.process&searchterm=ve"lora+x',
            "https://api.fda.gov/drug/drugsfda.json?search=products.brand_name:%22ve+lora+x%22+"
            "products.active_ingredients.name:%22ve+lora+x%22&limit=25",
        ),
        (DAF, None),
        (f"{DAF}?ApplNo=1;drop", None),
        (
            "https://api.fda.gov/drug/drugsfda.json?search=a",
            "https://api.fda.gov/drug/drugsfda.json?search=a",
        ),
        ("https://api.fda.gov/drug/label.json?search=a", None),
        (f"{OB}/results_product.cfm?Appl_No=1", "https://www.fda.gov/media/76860/download"),
        (f"{OB}/search_product.cfm?drugname=x", "https://www.fda.gov/media/76860/download"),
        (f"{OB}/results_product.cfm?Appl_No=x", None),
        (f"{OB}/search_product.cfm", None),
        ("https://a.test/scripts/cder/ob/search_product.cfm?drugname=x", None),
    ],
)
def test_a_url_is_made_of_the_data_of_one_adapter_or_of_none(url: str, place: str | None) -> None:
    found = [adapter.locate(URL(url)) for adapter in ADAPTERS.values()]
    places = [str(each) for each in found if each is not None]
    assert places == ([] if place is None else [place])


def test_what_no_adapter_got_is_not_rendered() -> None:
    assert render(page("https://clinicaltrials.gov/study/NCT90000001", STUDY)) is None
    text = render(page("https://clinicaltrials.gov/study/NCT90000001", STUDY, "clinicaltrials"))
    assert text == STUDY_PAGE
