"""Makes one process of a program hang in its loader: see tests/test_processes.py."""

import os
import sys
import threading


class _Finder:
    """Replaces the batches of the process that is to hang by some, and then none for ever."""
