"""A model behind HTTP, and its page for browsers.

``server`` runs uvicorn with ``app``, the addresses. A request's image goes through ``uploads`` (what is read,
and how much of it), waits for ``model_thread`` (one image at a time), and is looked at by ``served_model``;
``answers`` are what comes back. Needs the packages of the extra ``serve``, which the command asks for.
"""
