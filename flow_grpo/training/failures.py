"""What a process raises where another process of its run has failed. The launcher tells of the other one."""


class FailedElsewhere(RuntimeError):
    """Another process of this run has failed, and its error is the one to read."""
