"""Fair comparisons: alternating times, peak memory, numerical checks, tables and figures.

``run`` measures candidates with ``timing``, ``memory`` and ``machine``; ``report`` and ``figures`` show the
results. There are two kinds: ``attention`` has implementations of the layer; ``models`` has backbones,
detectors and segmentors, which ``sources`` finds by name and ``growth`` compares over image sizes. Apart
from these, ``data`` measures what feeds a training, and ``scaling`` one in several processes.
"""
