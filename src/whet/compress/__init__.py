"""Floor 2: everything that changes a model. Needs the packages of ``pip install whet[compress]``."""
