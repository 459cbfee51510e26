"""The evidence for focused linear attention: its weights, how sharp they are, and their rank.

Every attention layer of a backbone is cut into :class:`~.windows.Windows`, in which each query attends to
each key; :mod:`.matrices` writes the weights of a window down as a matrix, :mod:`.convolution` does the same
for the depthwise convolution, and :mod:`.reconstruction` proves that the matrices are the layer.
"""
