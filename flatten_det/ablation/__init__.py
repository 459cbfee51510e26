"""Ablations: the same training for several variants and seeds, and what the differences between them are.

``grid`` names the runs, ``run`` trains them and goes on where it was stopped, ``statistics`` compares
the variants, ``report`` writes table, JSON and ``figure``.
"""
