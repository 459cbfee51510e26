"""Fair comparisons: alternating times, peak memory, numerical checks, tables and plots.

``timing``, ``memory``, ``bandwidth``, ``failures``, ``machine`` and ``report`` know nothing of what is
compared; ``attention`` compares implementations of focused linear attention with them.
"""
