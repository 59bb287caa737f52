"""The faults that mutants.py plants, each with the tests that are enough to catch it."""

from faults.guard import GUARD
from faults.layouts import DEVICE_FAULTS, KEPT_FAULTS, PLAN_FAULTS
from faults.persistent import PERSISTENT
from faults.rows import ROW_FAULTS

MUTANTS = [*PERSISTENT, *GUARD, *PLAN_FAULTS, *KEPT_FAULTS, *DEVICE_FAULTS, *ROW_FAULTS]
