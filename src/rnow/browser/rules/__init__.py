"""What may be read, and how often: addresses, hosts, robots.txt, pace, pages that turn programs away."""
