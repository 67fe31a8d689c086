"""Forms of memory beside each other: how soon a generator reads them, and what they carry."""
