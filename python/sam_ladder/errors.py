"""What this package refuses."""


class StoreError(ValueError):
    """A store that cannot be read: what is wrong, and where."""


class RunError(ValueError):
    """A folder that is not a run, or that lacks a file."""
