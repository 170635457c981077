"""Machines of a Ray cluster: a keeper on each starts servers there and passes requests on."""
