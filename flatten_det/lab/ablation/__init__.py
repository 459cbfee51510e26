"""Ablations: the same training for several variants and seeds, and what the differences between them are.

``grid`` names the runs and exchanges their attention, ``run`` trains one of them and goes on where it was
stopped, ``jobs`` trains all, one after the other, or several at a time in processes or by ``engines``, and
``report`` compares the variants.
"""
