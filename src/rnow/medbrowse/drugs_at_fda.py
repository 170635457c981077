"""Drugs@FDA: applications, their products and approvals, from openFDA.

The page of one application is found by its number, a search by the name of a drug; openFDA answers
status 404 where there is none. Without a key it answers 1,000 requests a day.
"""

import json
import re

from yarl import URL

from rnow.browser import RawPage, adapter
from rnow.medbrowse.layout import Record, facts, joined, many, section, table

_API = URL("https://api.fda.gov/drug/drugsfda.json")
_HOSTS = ("www.accessdata.fda.gov", "accessdata.fda.gov")
_NUMBER = re.compile(r"(?:NDA|ANDA|BLA)?(\d{1,6})", re.IGNORECASE)
_KINDS = ("NDA", "ANDA", "BLA")
_MAX_FOUND = 25
_STATUS = {"AP": "Approval", "TA": "Tentative approval"}
_KIND_OF_SUBMISSION = {"ORIG": "Original", "SUPPL": "Supplement"}


def _locate(url: URL) -> URL | None:
    if url.raw_host == _API.raw_host and url.path == _API.path:
        return url
    if url.raw_host not in _HOSTS or not url.path.startswith("/scripts/cder/daf"):
        return None
    query = {name.lower(): value.strip() for name, value in url.query.items()}
    number = _NUMBER.fullmatch(query.get("applno", ""))
    if number is not None:
        # A space is openFDA's OR.
        terms = (f'application_number:"{kind}{number[1]:0>6}"' for kind in _KINDS)
        return _API.with_query(search=" ".join(terms), limit=str(len(_KINDS)))
    name = re.sub(r'["\\]', " ", query.get("searchterm", "") or query.get("drugname", "")).strip()
    if name:
        fields = ("products.brand_name", "products.active_ingredients.name")
        terms = (f'{field}:"{name}"' for field in fields)
        return _API.with_query(search=" ".join(terms), limit=str(_MAX_FOUND))
    return None


@adapter("api.fda.gov", *_HOSTS, data=_locate)
def drugs_at_fda(page: RawPage) -> str:
    """Return the applications of an answer of drugsfda.json, one under the other."""
    answer = json.loads(page.body)
    applications = answer["results"]
    total = answer.get("meta", {}).get("results", {}).get("total", len(applications))
    more = total - len(applications)
    note = f"{more} more applications match; ask for them by their number." if more > 0 else ""
    return joined(*map(_application, applications), note)


def _application(application: Record) -> str:
    number = str(application.get("application_number", ""))
    parts = re.fullmatch(r"([A-Z]+)(\d+)", number)
    title = f"{parts[1]} {parts[2]}" if parts else number
    company = facts({"Company": application.get("sponsor_name")})
    products = table(
        (
            *("Product", "Drug Name", "Active Ingredients", "Strength", "Dosage Form/Route"),
            *("Marketing Status", "TE Code", "RLD", "RS"),
        ),
        (_product(product) for product in many(application, "products")),
    )
    submissions = sorted(
        many(application, "submissions"),
        key=lambda submission: str(submission.get("submission_status_date", "")),
        reverse=True,
    )
    approvals = table(
        ("Action Date", "Submission", "Action Type", "Classification", "Review", "Documents"),
        map(_submission, submissions),
    )
    return section(
        f"Drugs@FDA: {title}",
        company,
        section(f"Products on {title}", products),
        section(f"Approval Dates and History for {title}", approvals),
        level=1,
    )


def _product(product: Record) -> tuple[object, ...]:
    ingredients = many(product, "active_ingredients")
    form = (product.get("dosage_form"), product.get("route"))
    return (
        product.get("product_number"),
        product.get("brand_name"),
        "; ".join(str(ingredient.get("name", "")) for ingredient in ingredients),
        "; ".join(str(ingredient.get("strength", "")) for ingredient in ingredients),
        ";".join(part for part in form if part),
        product.get("marketing_status"),
        product.get("te_code"),
        product.get("reference_drug"),
        product.get("reference_standard"),
    )


def _submission(submission: Record) -> tuple[object, ...]:
    kind = submission.get("submission_type", "")
    status = submission.get("submission_status", "")
    documents = (
        f"[{document.get('type', 'Document')}]({document['url']})"
        for document in many(submission, "application_docs")
        if document.get("url")
    )
    return (
        _date(str(submission.get("submission_status_date", ""))),
        f"{_KIND_OF_SUBMISSION.get(kind, kind)}-{submission.get('submission_number', '')}",
        _STATUS.get(status, status),
        submission.get("submission_class_code_description"),
        submission.get("review_priority"),
        ", ".join(documents),
    )


def _date(text: str) -> str:
    """Turn openFDA's 20121228 into the page's 12/28/2012."""
    return f"{text[4:6]}/{text[6:8]}/{text[:4]}" if re.fullmatch(r"\d{8}", text) else text
