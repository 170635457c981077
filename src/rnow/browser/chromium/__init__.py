"""Pages that their scripts fill: one Chromium a worker, behind a proxy of its own."""
