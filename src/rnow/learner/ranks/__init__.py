"""One update made by several processes: who computes what, and how their sums become one."""
