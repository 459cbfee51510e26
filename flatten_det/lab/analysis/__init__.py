"""The evidence for focused linear attention: its weights, how sharp they are, and their rank.

Every attention layer of a backbone is cut into :class:`~.layers.Windows`, in which each query attends to
each key; :mod:`.matrices` writes the weights of a window and its depthwise convolution down as matrices,
and proves that these are the layer; :mod:`.measure` looks at them over images.
"""
