"""The medicine: site adapters, answer values, grading rules, paces of the sites."""
