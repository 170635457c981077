"""The Orange Book: products, patents and exclusivity, from its monthly data files.

One zip of three text files, columns apart by `~` and named in the first line, serves every page:

    products.txt     Ingredient DF;Route Trade_Name Strength Appl_Type Appl_No Product_No TE_Code …
    patent.txt       Appl_Type Appl_No Product_No Patent_No Patent_Expire_Date_Text …
    exclusivity.txt  Appl_Type Appl_No Product_No Exclusivity_Code Exclusivity_Date
"""

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from yarl import URL

from rnow.browser import RawPage, adapter
from rnow.medbrowse.layout import facts, section, table

_DATA = URL("https://www.fda.gov/media/76860/download")
_HOSTS = ("www.accessdata.fda.gov", "accessdata.fda.gov")
_FOLDER = "/scripts/cder/ob/"
_MAX_FILE_BYTES = 60_000_000  # unpacked: products.txt has some 10 MB
_MAX_FOUND = 200
_STATUS = {"RX": "Prescription", "OTC": "Over-the-counter", "DISCN": "Discontinued"}

Row = Mapping[str, str]


def _locate(url: URL) -> URL | None:
    return _DATA if _page_of(url) is not None else None


def _page_of(url: URL) -> Callable[[zipfile.ZipFile], str] | None:
    """Return what makes this page; None where it is none of these."""
    if not url.path.lower().startswith(_FOLDER):
        return None
    query = {name.lower(): value.strip() for name, value in url.query.items()}
    page = url.path.lower().removeprefix(_FOLDER)
    number = query.get("appl_no", "")
    if re.fullmatch(r"\d{1,6}", number):
        wanted = {"Appl_No": f"{number:0>6}"}
        if query.get("appl_type"):
            wanted["Appl_Type"] = query["appl_type"].upper()[:1]
        if page == "results_product.cfm":
            return lambda files: _products(files, wanted)
        if page == "patent_info.cfm":
            if query.get("product_no"):
                wanted["Product_No"] = f"{query['product_no']:0>3}"
            return lambda files: _patents(files, wanted)
    name = query.get("drugname", "").upper()
    if page in ("search_product.cfm", "index.cfm", "") and name:
        return lambda files: _found(files, name)
    return None


@adapter(*_HOSTS, data=_locate, is_for_all=True)
def orange_book(page: RawPage) -> str:
    """Return the page that its URL asks for, from the zip that is its body."""
    make = _page_of(page.url)
    assert make is not None, "only pages of this adapter come here"
    with zipfile.ZipFile(io.BytesIO(page.body)) as files:
        return make(files)


def _rows(files: zipfile.ZipFile, name: str) -> Iterator[Row]:
    # The files were renamed once: products.txt, Products.txt.
    (member,) = (info for info in files.infolist() if info.filename.lower() == name)
    with files.open(member) as file:
        body = file.read(_MAX_FILE_BYTES + 1)
    if len(body) > _MAX_FILE_BYTES:
        raise ValueError(f"{name} of the Orange Book has more than {_MAX_FILE_BYTES} bytes")
    columns, *lines = body.decode("utf-8", errors="replace").splitlines()
    names = columns.split("~")
    for line in lines:
        yield dict(zip(names, line.split("~"), strict=False))


def _matching(files: zipfile.ZipFile, name: str, wanted: Row) -> list[Row]:
    return [
        row
        for row in _rows(files, name)
        if all(row.get(column) == value for column, value in wanted.items())
    ]


def _products(files: zipfile.ZipFile, wanted: Row) -> str:
    found = _matching(files, "products.txt", wanted)
    title = f"Orange Book: Product Details for Application {wanted['Appl_No']}"
    return section(title, *map(_product, found) if found else (_NONE,), level=1)


_NONE = "No matching records found."


def _product(row: Row) -> str:
    form, _, route = row.get("DF;Route", "").partition(";")
    details = facts(
        {
            "Active Ingredient": row.get("Ingredient"),
            "Proprietary Name": row.get("Trade_Name"),
            "Dosage Form; Route of Administration": f"{form}; {route}",
            "Strength": row.get("Strength"),
            "Reference Listed Drug": row.get("RLD"),
            "Reference Standard": row.get("RS"),
            "TE Code": row.get("TE_Code"),
            "Application Number": f"{row.get('Appl_Type', '')}{row.get('Appl_No', '')}",
            "Product Number": row.get("Product_No"),
            "Approval Date": row.get("Approval_Date"),
            "Applicant Holder Full Name": row.get("Applicant_Full_Name"),
            "Marketing Status": _STATUS.get(row.get("Type", ""), row.get("Type")),
        }
    )
    title = f"Product {row.get('Product_No', '')}: {row.get('Trade_Name', '')}"
    link = (
        f"{_FOLDER}patent_info.cfm?Product_No={row.get('Product_No', '')}"
        f"&Appl_No={row.get('Appl_No', '')}&Appl_type={row.get('Appl_Type', '')}"
    )
    return section(title, details, f"[Patent and Exclusivity Information]({link})")


def _patents(files: zipfile.ZipFile, wanted: Row) -> str:
    products = _matching(files, "products.txt", wanted)
    if not products:
        return section("Orange Book: Patent and Exclusivity", _NONE, level=1)
    number = f"{products[0].get('Appl_Type', '')}{wanted['Appl_No']}"
    heads = (
        f"Product {row.get('Product_No', '')}: {row.get('Trade_Name', '')} "
        f"({row.get('Ingredient', '')}) {row.get('DF;Route', '')} {row.get('Strength', '')}"
        for row in products
    )
    patents = _columns(
        _matching(files, "patent.txt", wanted),
        {
            "Product No": "Product_No",
            "Patent No": "Patent_No",
            "Patent Expiration": "Patent_Expire_Date_Text",
            "Drug Substance": "Drug_Substance_Flag",
            "Drug Product": "Drug_Product_Flag",
            "Patent Use Code": "Patent_Use_Code",
            "Delist Requested": "Delist_Flag",
            "Submission Date": "Submission_Date",
        },
    )
    exclusivity = _columns(
        _matching(files, "exclusivity.txt", wanted),
        {
            "Product No": "Product_No",
            "Exclusivity Code": "Exclusivity_Code",
            "Exclusivity Expiration": "Exclusivity_Date",
        },
    )
    return section(
        f"Orange Book: Patent and Exclusivity for {number}",
        "\n".join(heads),
        section("Patent Data", patents or "There are no unexpired patents for this product."),
        section(
            "Exclusivity Data", exclusivity or "There is no unexpired exclusivity for this product."
        ),
        level=1,
    )


def _found(files: zipfile.ZipFile, name: str) -> str:
    found = [
        row
        for row in _rows(files, "products.txt")
        if name in row.get("Ingredient", "").upper() or name in row.get("Trade_Name", "").upper()
    ]
    shown: Sequence[Row] = found[:_MAX_FOUND]
    rows = (
        (
            _STATUS.get(row.get("Type", ""), row.get("Type")),
            row.get("Ingredient"),
            row.get("Trade_Name"),
            f"[{row.get('Appl_Type', '')}{row.get('Appl_No', '')}]({_FOLDER}results_product.cfm"
            f"?Appl_Type={row.get('Appl_Type', '')}&Appl_No={row.get('Appl_No', '')})",
            row.get("DF;Route"),
            row.get("Strength"),
            row.get("Applicant_Full_Name"),
        )
        for row in shown
    )
    columns = ("Status", "Active Ingredient", "Proprietary Name", "Application")
    records = table((*columns, "Dosage Form; Route", "Strength", "Applicant Holder"), rows)
    left = len(found) - len(shown)
    note = f"{left} more records; search for a longer name." if left else ""
    return section(f"Orange Book: Search for {name}", records or _NONE, note, level=1)


def _columns(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """Return a table of these columns: title -> name in the file."""
    return table(tuple(names), ([row.get(name) for name in names.values()] for row in rows))
