"""A trained model behind HTTP, with a page for browsers."""
