"""What may be read, and how often: addresses, hosts, robots.txt, pace, refusals."""
