"""The medicine: adapters of its sites, their paces, and a grader of its answers.

`import rnow.medbrowse` in a tools.py or a rewards.py registers them, as a project would its own.
"""

from rnow.browser import pace
from rnow.medbrowse import (  # noqa: F401 — they register
    clinicaltrials,
    drugs_at_fda,
    grading,
    orange_book,
)

pace("api.fda.gov", "eutils.ncbi.nlm.nih.gov", interval_s=0.5)
pace("accessdata.fda.gov", "hemonc.org", "www.accessdata.fda.gov", "www.fda.gov", interval_s=5.0)
