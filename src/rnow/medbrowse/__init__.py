"""The medicine: adapters of its sites, their paces, and values of answers.

`from rnow import medbrowse` in a tools.py registers them, as a project would its own.
"""

from rnow.browser import pace
from rnow.medbrowse import clinicaltrials, drugs_at_fda, orange_book  # noqa: F401 — they register

pace("api.fda.gov", "eutils.ncbi.nlm.nih.gov", interval_s=0.5)
pace("accessdata.fda.gov", "hemonc.org", "www.accessdata.fda.gov", "www.fda.gov", interval_s=5.0)
