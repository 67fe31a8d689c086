"""Keep an index in step with its sources: add what is new, replace what changed, prune."""

from clara.sync.build import Build
from clara.sync.built import BuildError, Built
from clara.sync.deciding import Decision
from clara.sync.migrating import Migrated, Migration

__all__ = ["Build", "BuildError", "Built", "Decision", "Migrated", "Migration"]
