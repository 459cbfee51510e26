"""Implementations of focused linear attention, side by side.

``cases`` says on what they run, ``candidates`` what is compared, ``inputs`` makes the tensors, ``check``
compares with the equation, ``run`` does it all; ``table`` and ``plot`` show it.
"""
